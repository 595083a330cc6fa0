"""`streams`: the log's state, and its repair."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import click

from broker.cli import repairing
from broker.cli.common import json_option, print_json, with_settings
from broker.settings import Settings

if TYPE_CHECKING:
    from broker.events.inspection import Stream


@click.group()
def streams() -> None:
    """The log: what lies in Redis, and its repair when data was lost."""


streams.add_command(repairing.repair)


@streams.command()
@json_option
@with_settings
def info(settings: Settings, *, as_json: bool) -> None:
    """Each stream's size, groups and open messages, read from Redis. Exits 1 if a stream is refused.

    A message is open until its outcome; due: waits for its next attempt; parked: waits for a person. The lag
    of the group `delivery` is what no worker has read yet, its pending entries are in workers' hands; the
    group `projections` follows the checkpoints of the database (`broker projection lag`), the group `archive`
    what was gathered for segments; up to `archived` they are sealed (`broker archive status`). A stream of
    another incarnation than the log's, or with a reason for its refusal, takes and gives nothing until
    `broker streams repair` has brought back what Redis lost.
    """
    found = asyncio.run(_info(settings))
    if as_json:
        print_json(found)
    else:
        _show(found)
    sys.exit(1 if any(one.refused or one.incarnation is None for one in found) else 0)


async def _info(settings: Settings) -> list[Stream]:
    from broker.cli import opening
    from broker.events import inspection

    async with opening.log(settings) as (redis, keys):
        return await inspection.streams(redis, keys)


def _show(found: list[Stream]) -> None:
    from broker.cli import tables

    numbers = ("events", "memory", "lag", "pending", "consumers", "open", "due", "parked")
    names = (
        "stream",
        "events",
        "first",
        "last",
        "archived",
        "memory",
        "open",
        "due",
        "parked",
        "group",
        "lag",
        *numbers[3:5],
    )
    rows: list[tuple[str, ...]] = []
    for one in found:
        own: tuple[str, ...] = (
            one.stream,
            str(one.length),
            one.first or "–",
            one.last or "–",
            one.archived or "–",
            _size(one.memory_bytes),
        )
        own += (_count(one.open), _count(one.due), _count(one.parked))
        groups = [
            (each.name, _count(each.lag), str(each.pending), str(each.consumers)) for each in one.groups
        ]
        for group in groups or [("–", "", "", "")]:
            rows.append((*own, *group))
            own = ("",) * len(own)
    tables.show(names, rows, numbers)
    for one in found:
        if one.incarnation is None:
            click.echo(
                click.style(f"{one.stream}: no incarnation; this Redis was emptied or is another", fg="red")
            )
        elif one.refused:
            click.echo(f"{click.style(f'{one.stream}: refused', fg='red')}: {one.refused}")
        if one.held_by:
            click.echo(
                f"{one.stream}: history older than wanted stays in Redis, because of it: {one.held_by}"
            )
    incarnations = ", ".join(f"{one.stream} {one.incarnation or 'none'}" for one in found)
    click.echo(click.style(f"Incarnations: {incarnations}", dim=True))


def _count(value: int | None) -> str:
    return "" if value is None else str(value)


def _size(value: int | None) -> str:
    if value is None:
        return "?"
    size = float(value)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
