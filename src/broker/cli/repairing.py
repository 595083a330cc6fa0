"""`streams repair`: a Redis that lost data brought back from archive and tables."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import click

from broker.cli.common import confirm, json_option, print_json, with_settings, yes_option
from broker.settings import Settings

if TYPE_CHECKING:
    from broker.events.repair.report import Report, StreamReport
    from broker.events.repair.run import Repair

SHOWN = 20


@click.command()
@click.option("--dry-run", is_flag=True, help="Only tell what is missing, and what would be done.")
@yes_option
@json_option
@with_settings
def repair(settings: Settings, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Bring back a log whose Redis was emptied, put back to an older state, or replaced.

    \b
      broker streams repair --dry-run
      broker streams repair --yes

    Reads the archive, the audit log in the database and what Redis still has; makes streams, open messages,
    outcomes, idempotency keys, the registry of users, clients and certificates and the clients' keys anew;
    and begins the log's next life, which running processes take up by themselves. Nothing that has an outcome
    is delivered again. Everybody has to sign in again. Interrupted, it is run again: until then the log is
    refused. Needs room in Redis for a second copy of what stays there.
    """  # noqa: D301 - click's mark
    if as_json and not (yes or dry_run):
        raise click.UsageError("--json goes with --dry-run or --yes.")
    done = asyncio.run(_repair(settings, dry_run=dry_run, yes=yes, as_json=as_json))
    if as_json:
        print_json(done)


async def _repair(settings: Settings, *, dry_run: bool, yes: bool, as_json: bool) -> Report:
    with _progress() as told:
        async with _opened(settings, told) as (work, up_to_date):
            if dry_run or not yes:
                found = await work.examine()
                if not as_json:
                    _show(found)
                if dry_run:
                    return found
                await asyncio.to_thread(confirm, "Repair it?", yes=False)
            await asyncio.to_thread(up_to_date)
            done = await work.run()
    if not as_json:
        _show(done)
    return done


@asynccontextmanager
async def _opened(
    settings: Settings, told: Callable[[str, int], None]
) -> AsyncIterator[tuple[Repair, Callable[[], None]]]:
    """The repair, and what brings the tables up to date before it, as `up` does, new ones too."""
    from broker.cli import opening
    from broker.events import connection, key_copies
    from broker.events.archive import storage
    from broker.events.repair.run import Repair
    from broker.projections.repairing import StoredTables
    from broker.projections.schema import migrate

    async with AsyncExitStack() as stack:
        settings = await stack.enter_async_context(_servers(settings))
        redis = connection.connect(settings.redis_url or "", timeout=settings.redis_timeout)
        stack.push_async_callback(redis.aclose)
        await opening.answering(redis, settings)
        store = await stack.enter_async_context(opening.store(settings))
        work = Repair(
            redis,
            settings,
            storage.opened(settings),
            lambda log_id: key_copies.opened(settings, log_id),
            StoredTables(store),
            told=told,
        )
        yield work, partial(migrate, settings.mysql_url or "")


@asynccontextmanager
async def _servers(settings: Settings) -> AsyncIterator[Settings]:
    """The embedded servers, for as long as the block takes where `up` does not run: it refuses such a log."""
    from broker.embedded import leftovers
    from broker.embedded.state import RunLock, running
    from broker.embedded.urls import mariadb, resolve, valkey

    async with AsyncExitStack() as stack:
        embedded = settings.redis_url is None or settings.mysql_url is None
        if embedded and running(settings.data_dir) is None:
            stack.enter_context(RunLock(settings.data_dir))
            await leftovers.reap(settings)
            for server, address in (
                (mariadb(settings), settings.mysql_url),
                (valkey(settings), settings.redis_url),
            ):
                if address is None:
                    await server.start()
                    stack.push_async_callback(server.stop)
        yield resolve(settings)


@contextmanager
def _progress() -> Iterator[Callable[[str, int], None]]:
    """What is being done, on stderr where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _what, _events: None
        return
    from rich.console import Console

    with Console(stderr=True).status("Looking") as status:
        yield lambda what, events: status.update(f"{what[0].upper()}{what[1:]}: {events:,} events")


def _show(found: Report) -> None:
    if not found.streams:
        click.echo(f"The log is in order as far as can be seen, and in use: {', '.join(found.at_work)}.")
        return
    if not found.done:
        for reason in found.refused:
            click.echo(f"{click.style('Refused', fg='red')}: {reason}")
        if not found.refused:
            click.echo(
                "Nothing is missing as far as can be seen; a repair makes everything anew all the same."
            )
    _table(found.streams)
    click.echo(
        f"Registry: {found.clients} clients, {found.certificates} certificates, {found.users} users; keys of "
        f"{len(found.keys_restored)} clients come from their copies."
    )
    for one in found.streams:
        _show_stream(one)
    if found.keys_lost:
        _lost(f"the newest keys of {_some(found.keys_lost)}; what they sealed cannot be read any more")
    if found.messages_lost:
        _lost(f"messages that the tables show as they were last seen: {_some(found.messages_lost)}")
    if found.rebuild:
        click.echo(f"Afterwards build anew: broker projection rebuild {' '.join(found.rebuild)}")
    if found.done:
        click.echo(f"Repaired; the log's next life is {found.incarnations['control'].partition('.')[0]}.")


def _table(streams: list[StreamReport]) -> None:
    from broker.cli import tables

    names = (
        "stream",
        "events",
        "archive",
        "audit log",
        "Redis only",
        "missing",
        "lost",
        "open",
        "parked",
        "last",
    )
    rows = [
        (
            one.stream,
            str(one.events),
            str(one.archived),
            str(one.recorded),
            str(one.in_redis),
            str(one.missing),
            str(one.lost),
            "" if one.open is None else str(one.open),
            "" if one.parked is None else str(one.parked),
            one.last,
        )
        for one in streams
    ]
    tables.show(names, rows, names[1:-1])


def _show_stream(one: StreamReport) -> None:
    if one.lost:
        _lost(f"{one.lost} events of stream {one.stream}, after {one.lost_after}")
    if one.void:
        click.echo(f"{one.stream}: {one.void} events are left out, which contradict what was known before.")
    if one.moved:
        click.echo(f"{one.stream}: {one.moved} events, taken in while the clock was behind, come last.")
    if one.completed:
        what = "erasures" if one.stream == "control" else "what attempts had led to"
        click.echo(f"{one.stream}: {one.completed} events are added, because they were lost: {what}.")


def _lost(what: str) -> None:
    click.echo(f"{click.style('Lost for good', fg='red')}: {what}.")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
