"""`projection`: how far the read models are."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from broker.cli import rebuilding
from broker.cli.common import json_option, print_json, with_settings
from broker.settings import Settings

if TYPE_CHECKING:
    from broker.projections.checkpoints import Checkpoint
    from broker.projections.lag import Lag


@click.group()
def projection() -> None:
    """Read models: the tables that projectors build from the log."""


projection.add_command(rebuilding.rebuild)


@projection.command("list")
@json_option
@with_settings
def list_(settings: Settings, *, as_json: bool) -> None:
    """Each projection's checkpoint on each stream, from the database. Exits 1 if one is halted.

    A checkpoint moves in the transaction of the rows, so it says exactly what the tables hold. A halted
    projection met an event that it cannot take in; the others go on. After the cause is gone,
    `broker projection resume NAME` lets it try again.
    """
    found = asyncio.run(_checkpoints(settings))
    if as_json:
        print_json([_plain(one) for one in found])
    else:
        rows = [
            (one.projection, one.position.stream, one.position.entry_id, f"{one.events}") for one in found
        ]
        _table(("projection", "stream", "position", "events"), rows, {"events"})
        _halts([(one.projection, one.position.stream, one.halted) for one in found])
    sys.exit(1 if any(one.halted for one in found) else 0)


@projection.command()
@json_option
@with_settings
def lag(settings: Settings, *, as_json: bool) -> None:
    """How far each projection is behind the log, in events and seconds. Exits 1 if one is halted.

    The seconds are the age of the oldest event that the tables do not show yet.
    """
    found = asyncio.run(_lag(settings))
    if as_json:
        print_json(found)
    else:
        rows = [(one.projection, one.stream, str(one.events), f"{one.seconds:.1f}") for one in found]
        _table(
            ("projection", "stream", "events behind", "seconds behind"),
            rows,
            {"events behind", "seconds behind"},
        )
        _halts([(one.projection, one.stream, one.halted) for one in found])
    sys.exit(1 if any(one.halted for one in found) else 0)


@projection.command()
@click.argument("name")
@click.option("--stream", help="On this stream only.")
@with_settings
def resume(settings: Settings, name: str, stream: str | None) -> None:
    """Let a halted projection try again, at the event at which it stopped."""
    cleared = asyncio.run(_resume(settings, name, stream))
    click.echo(f"Cleared {cleared} halt{'' if cleared == 1 else 's'} of {name}.")


async def _checkpoints(settings: Settings) -> list[Checkpoint]:
    from broker.cli import opening
    from broker.projections import checkpoints

    async with opening.store(settings) as store:
        return await checkpoints.everything(store)


async def _lag(settings: Settings) -> list[Lag]:
    from broker.cli import opening
    from broker.projections import checkpoints, lag

    found: list[Lag] = []
    async with opening.store(settings) as store, opening.log(settings) as (redis, keys):
        everything = await checkpoints.everything(store)
        for stream in keys.streams:
            own = [one for one in everything if one.position.stream == stream.stream]
            found += await lag.measure(redis, stream, own)
    return sorted(found, key=lambda one: one.projection)


async def _resume(settings: Settings, name: str, stream: str | None) -> int:
    from broker.cli import opening
    from broker.errors import NotFound
    from broker.projections import checkpoints

    async with opening.store(settings) as store:
        known = {one.projection for one in await checkpoints.everything(store)}
        if name not in known:
            raise NotFound(
                f"There is no projection {name}; there are {', '.join(sorted(known)) or 'none yet'}."
            )
        return await checkpoints.resume(store, name, stream)


def _plain(one: Checkpoint) -> dict[str, Any]:
    return {
        "projection": one.projection,
        "stream": one.position.stream,
        "position": str(one.position),
        "events": one.events,
        "incarnation": one.incarnation,
        "halted": one.halted,
    }


def _table(names: tuple[str, ...], rows: Sequence[tuple[str, ...]], right: set[str]) -> None:
    from broker.cli import tables

    if not rows:
        click.echo("No projection has begun yet: has a projector run?")
        return
    before = [""] + [row[0] for row in rows]
    shown = [("" if row[0] == name else row[0], *row[1:]) for row, name in zip(rows, before, strict=False)]
    tables.show(names, shown, right)


def _halts(found: list[tuple[str, str, str | None]]) -> None:
    for name, stream, reason in found:
        if reason:
            click.echo(f"{click.style('halted', fg='red')}: {name} on stream {stream}: {reason}")
