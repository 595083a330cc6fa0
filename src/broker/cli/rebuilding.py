"""`projection rebuild`: a read model built anew from the history, while the present one serves."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from broker.cli.common import json_option, print_json, with_settings
from broker.errors import BrokerError, NotFound
from broker.settings import Settings

if TYPE_CHECKING:
    from broker.projections.base import Projection
    from broker.projections.rebuild.run import Estimate, Record, Result
    from broker.projections.rebuild.showing import Progress
    from broker.projections.rebuild.sources import Source
    from broker.projections.store import Store


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every read model, one after another.")
@click.option("--dry-run", is_flag=True, help="Only tell how many events, and about how long.")
@click.option("--compare", is_flag=True, help="Show how the rebuilt rows differ from the present ones.")
@click.option("--no-switch", is_flag=True, help="Build and compare, then throw the rebuilt tables away.")
@click.option("--cancel", is_flag=True, help="End a rebuild that runs, or that was interrupted.")
@click.option(
    "--archive-only", is_flag=True, help="Read the archive alone, without Redis; brings the schema, too."
)
@click.option("--log-id", metavar="ID", help="With --archive-only: the log, where the archive holds several.")
@json_option
@with_settings
def rebuild(settings: Settings, names: tuple[str, ...], *, as_json: bool, **options: Any) -> None:
    """Build read models anew from the history; the present tables serve until the new ones replace them.

    \b
      broker projection rebuild messages --dry-run
      broker projection rebuild messages statistics --compare
      broker projection rebuild --all
      broker projection rebuild --all --archive-only

    The archive is read first, then the log. An interrupted rebuild goes on where it was when it is run again.
    Nothing is delivered again. Into an empty database, --all --archive-only brings back all that was
    archived; a projector goes on from there. With --no-switch it exits 1 if rows differ.
    """  # noqa: D301 - click's mark
    wanted = _wanted(names, everything=options.pop("everything"))
    if options["log_id"] and not options["archive_only"]:
        raise click.UsageError("--log-id goes with --archive-only.")
    if options.pop("cancel"):
        asyncio.run(_cancel(settings, wanted, options["archive_only"], options["log_id"]))
        return
    results = asyncio.run(_rebuild(settings, wanted, as_json=as_json, **options))
    if as_json:
        print_json(results)
    if options["no_switch"] and any(not _equal(result) for result in results):
        sys.exit(1)


def _wanted(names: tuple[str, ...], *, everything: bool) -> list[Projection]:
    from broker.projections import catalog
    from broker.projections.rebuild.run import named

    if everything == bool(names):
        raise click.UsageError(f"Name a projection ({', '.join(catalog.names())}), or say --all.")
    found = []
    for name in catalog.names() if everything else dict.fromkeys(names):
        projection = named(name)
        if projection is None:
            raise NotFound(f"There is no projection {name}; there are {', '.join(catalog.names())}.")
        found.append(projection)
    return found


async def _cancel(
    settings: Settings, wanted: list[Projection], archive_only: bool, log_id: str | None
) -> None:
    from broker.projections.rebuild import run

    async with _opened(settings, archive_only=archive_only, log_id=log_id) as (store, _, record):
        found = [one.name for one in wanted if await run.cancel(store, one, record)]
    click.echo(f"Cancelled: {', '.join(found)}." if found else "No rebuild of it was begun.")


async def _rebuild(
    settings: Settings, wanted: list[Projection], *, as_json: bool, dry_run: bool, **options: Any
) -> list[Any]:
    from broker.projections.rebuild import run

    results: list[Any] = []
    compare, switch = options["compare"] or options["no_switch"], not options["no_switch"]
    async with _opened(settings, archive_only=options["archive_only"], log_id=options["log_id"]) as parts:
        store, source, record = parts
        for projection in wanted:
            if dry_run:
                results.append(found := await run.estimate(store, source, projection))
                if not as_json:
                    _show_estimate(found)
                continue
            with _bar(projection.name) as shown:
                made = partial(run.Rebuild, store, source, projection, record=record, on_progress=shown)
                results.append(result := await made(compare=compare, switch=switch).run())
            if not as_json:
                _show_result(result)
    return results


@asynccontextmanager
async def _opened(
    settings: Settings, *, archive_only: bool, log_id: str | None
) -> AsyncIterator[tuple[Store, Source, Record | None]]:
    """The database, the history, and what puts a rebuild on record (not without Redis)."""
    from broker.cli import archive, opening
    from broker.events import log_identity
    from broker.events.archive import storage
    from broker.projections import schema
    from broker.projections.rebuild import background
    from broker.projections.rebuild.sources import ArchiveSource, LogSource

    settings = opening.resolved(settings)
    async with AsyncExitStack() as stack:
        if archive_only:
            where = storage.opened(settings)
            meant = archive.meant(where, settings, log_id)[0]
            present = None
            # A new machine knows no present life of the log; segments then say of which they are.
            with suppress(BrokerError):
                known = log_identity.read_file(settings)
                present = known.incarnations if known is not None and known.log_id == meant else None
            source: Source = ArchiveSource(where, meant, present)
            store = await stack.enter_async_context(opening.store(settings, pool=len(source.streams) + 4))
            await asyncio.to_thread(schema.migrate, settings.mysql_url or "")
            yield store, source, None
            return
        tools = await stack.enter_async_context(opening.administration(settings))
        source = LogSource(tools.redis, tools.keys, tools.identity, storage.opened(settings))
        store = await stack.enter_async_context(opening.store(settings, pool=len(source.streams) + 4))
        yield store, source, background.recorder(tools.registry, actor=opening.ACTOR)


@contextmanager
def _bar(name: str) -> Iterator[Callable[[Progress], None]]:
    """A bar with rate and time left on stderr where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None, speed="")
        yield lambda now: bar.update(task, completed=now.events, total=now.total, speed=_speed(now))


def _speed(now: Progress) -> str:
    from broker.projections.rebuild import showing

    if now.waiting_for is not None:
        return f"waits for {showing.NAMES[now.waiting_for]}"
    if now.rate is None or now.seconds_left is None:
        return ""
    return f"{now.rate:,.0f}/s, {now.seconds_left:.0f} s left"


def _show_estimate(found: Estimate) -> None:
    took = "" if found.seconds is None else f", about {found.seconds:.0f} s at {found.rate:,.0f} a second"
    click.echo(f"{found.projection}: {found.events} events into {', '.join(found.tables)}{took}.")


def _show_result(result: Result) -> None:
    for one in result.differences or []:
        if one.equal:
            click.echo(f"{one.table}: {one.rows} rows, equal.")
        elif not one.present:
            click.echo(f"{one.table}: {one.rows} rows; there is no such table at present.")
        else:
            click.echo(
                f"{one.table}: {one.rows} rows rebuilt; {one.missing} were missing, {one.surplus} too many, "
                f"{one.changed} different."
            )
            for example in one.examples:
                click.echo(f"  {example}")
    ends = {
        "switched": "rebuilt",
        "discarded": "compared, the present tables stay",
        "nothing": "nothing of it is archived, the present tables stay",
    }
    click.echo(
        f"{result.projection}: {ends[result.outcome]}; {result.events} events in {result.seconds:.1f} s."
    )


def _equal(result: Any) -> bool:
    return all(one.equal for one in getattr(result, "differences", None) or [])
