"""`export`: the history as a file that proves itself."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from broker.cli.common import UserPath, with_settings
from broker.errors import ValidationError
from broker.settings import Settings

if TYPE_CHECKING:
    from broker.events.exported_formats import Format
    from broker.events.exported_session import Export, Exports
    from broker.events.exported_walk import Filter
    from broker.events.positions import Position

FORMATS = ("jsonl", "csv", "parquet")


@click.command()
@click.option(
    "--format", "form", type=click.Choice(FORMATS), default="jsonl", show_default=True, help="Of the file."
)
@click.option("--from", "from_", metavar="TIME", help="A day (2026-01-31) or a time (2026-01-31T12:00:00Z).")
@click.option("--to", metavar="TIME", help="A day, to its last moment, or a time; it is included.")
@click.option("--client", metavar="NAME", help="What concerns this client.")
@click.option("--type", "types", multiple=True, metavar="TYPE", help="Such as Delivered; may be repeated.")
@click.option("--subject", metavar="ID", help="A message id, or client:NAME, cert:FINGERPRINT, user:ID.")
@click.option("--actor", metavar="WHO", help="Who did it: client:…, worker:…, user:…, system.")
@click.option("--correlation", metavar="ID", help="One conversation: what has this correlation id.")
@click.option("--output", "-o", type=UserPath(dir_okay=False), help="The file; else stdout.")
@click.option("--resume", is_flag=True, help="Go on with an export into --output that was interrupted.")
@with_settings
def export(
    settings: Settings, *, form: str, output: Path | None, resume: bool, types: tuple[str, ...], **given: Any
) -> None:
    """Export events, oldest first within each stream; it is recorded who exported what.

    \b
      broker export -o history.jsonl
      broker export --format csv --client shop --from 2026-01-01 --to 2026-01-31 -o january.csv
      broker events verify history.jsonl

    Bodies, numbers and secrets are withheld and replaced by their SHA-256. A digest of everything up to now
    is signed first and the export ends there, so that every event in it is vouched for. The digests are
    written to OUTPUT.digests.jsonl. With a filter, each line carries a proof of its own: it proves what the
    export contains, not what it lacks.

    Parquet cannot be resumed, and needs the package pyarrow, which a checkout's set-up installs.
    """  # noqa: D301 - click's mark
    asked = any(given.values()) or bool(types)
    if resume and (output is None or asked):
        raise click.UsageError("--resume takes --output, and no filter: it goes on with what was begun.")
    wanted = _filter(types, **given)
    if output is None:
        asyncio.run(_print(settings, wanted, form))
    else:
        asyncio.run(_write(settings, None if resume else wanted, form, output))


def _filter(types: tuple[str, ...], **given: Any) -> Filter:
    """The options as a filter. Raises click.BadParameter."""
    from broker.events import types as known
    from broker.events.exported_walk import Filter
    from broker.web.parameters import Query

    for name in types:
        if name not in known.ALL:
            raise click.BadParameter(f"{name} is none of {', '.join(known.ALL)}.", param_hint="--type")
    options = {"from" if name == "from_" else name: value for name, value in given.items()}
    try:
        query = Query(options, list(options))
        return Filter(
            since=query.since("from"),
            until=query.until("to"),
            types=types,
            subject=query.text("subject"),
            actor=query.text("actor"),
            client_id=query.client("client"),
            correlation_id=query.correlation("correlation"),
        )
    except ValidationError as error:
        raise click.BadParameter(error.reason, param_hint=f"--{error.field}") from None


@asynccontextmanager
async def exports(settings: Settings) -> AsyncIterator[Exports]:
    """What begins exports, on the log of the settings."""
    from broker import lifecycle
    from broker.cli import opening
    from broker.events.exported_session import Exports

    async with opening.administration(settings) as tools:
        lifecycle.calm_collector()
        yield Exports.of(tools.settings, tools.redis, tools.keys, tools.identity, tools.keyring)


def _format(name: str) -> Format:
    """Raises click.BadParameter where its package is not installed."""
    from broker.events import exported_formats

    try:
        return exported_formats.named(name)
    except ValidationError as error:
        raise click.BadParameter(error.reason, param_hint="--format") from None


async def _print(settings: Settings, wanted: Filter, form: str) -> None:
    from broker.cli import opening

    made = _format(form)
    if form == "parquet" and sys.stdout.isatty():
        raise click.UsageError("Parquet is not for a terminal: give --output.")
    async with exports(settings) as begins:
        begun = await begins.begin(wanted, form, actor=opening.ACTOR)
        out = sys.stdout.buffer
        out.write(made.head())
        count = await _lines(begun, made, out, None)
        out.flush()
    click.echo(f"{count} events, up to digest {begun.digest}.", err=True)


async def _write(settings: Settings, wanted: Filter | None, form: str, path: Path) -> None:
    """Into a file; goes on with what was begun there when `wanted` is None."""
    from broker.cli import opening
    from broker.events import exported_file

    target = exported_file.Target(path)
    digest = None
    if wanted is None:
        plan = target.plan()
        wanted, form, digest = plan.wanted, plan.form, plan.digest
    else:
        target.check_new()
    made = _format(form)
    async with exports(settings) as begins:
        begun = await begins.begin(wanted, form, actor=opening.ACTOR, digest=digest)
        if digest is None:
            kept = exported_file.Plan(form, wanted, begun.digest) if made.resumable else None
            file, after = target.begin(kept, made.head()), None
        else:
            file, after = target.resume(made.head())
        try:
            with closing(file):
                count = await _lines(begun, made, file, after)
                target.finish(file, begun.signed)
        except OSError as error:
            # Only the file raises these; a log or an archive that is away has errors of its own.
            raise target.refused(error, resumable=made.resumable) from None
    more = "more " if after is not None else ""
    click.echo(f"{count} {more}events in {path}, up to digest {begun.digest}; the digests: {target.digests}.")


async def _lines(begun: Export, made: Format, out: IO[bytes], after: Position | None) -> int:
    """Write the lines; how many."""
    count = 0
    with _progress(begun.walk.events) as seen:
        async for block in begun.walk.lines(after):
            out.write(made.encode(block))
            count += len(block)
            seen(begun.walk.seen)
        out.write(made.end())
    return count


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar on stderr where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("events"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("events", total=total)
        yield lambda seen: bar.update(task, completed=seen)
