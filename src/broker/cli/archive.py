"""`archive`: how far the history is archived, and whether the archive is whole."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from broker.cli.common import UserPath, json_option, print_json, with_settings
from broker.errors import BrokerError, NotFound
from broker.settings import Settings

if TYPE_CHECKING:
    from broker.events.archive.segments import Manifest
    from broker.events.archive.storage import Storage
    from broker.events.archive.verification import Verified
    from broker.events.inspection import Stream


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """One stream's archive: its newest segment, and how far the stream goes on after it."""

    stream: str
    segments: int
    events: int
    last: str | None
    sealed_at: str | None
    behind: int
    """Events of the stream that are not archived yet."""
    trimmed: int
    """Events that are in the archive only."""
    held_by: str | None


@click.group()
def archive() -> None:
    """The archive: every event ever, in sealed segments."""


@archive.command()
@json_option
@with_settings
def status(settings: Settings, *, as_json: bool) -> None:
    """How far each stream is archived and trimmed. Exits 1 if the archive lacks what Redis no longer has.

    A segment is sealed once it is large or old enough (`archive_segment_mb`, `archive_segment_seconds`);
    until then its events are in Redis only, and stay there.
    """
    found = asyncio.run(_status(settings))
    lacking = [one for one in found if one.trimmed > one.events]
    if as_json:
        print_json(found)
    else:
        _show(found)
        for one in lacking:
            click.echo(
                f"{click.style(f'{one.stream}: incomplete', fg='red')}: {one.trimmed} events have left "
                f"Redis, {one.events} are archived. Is archive_url the right one?"
            )
    sys.exit(1 if lacking else 0)


@archive.command()
@click.option("--stream", "streams", multiple=True, metavar="NAME", help="Only this one; may be repeated.")
@click.option(
    "--log-id", metavar="ID", help="The log, where neither the data directory nor the archive tells."
)
@click.option(
    "--digests", type=UserPath(exists=True, dir_okay=False), help="Kept ones, instead of the archive's own."
)
@json_option
@with_settings
def verify(
    settings: Settings,
    streams: tuple[str, ...],
    log_id: str | None,
    digests: Path | None,
    *,
    as_json: bool,
) -> None:
    """Read the whole archive and check every hash; needs neither Redis nor the database.

    Names the first segment that is missing or was changed, and exits 1. Whoever can write the archive can
    make manifests that fit changed segments; so its events are also held against the signed digests in it,
    or those that you kept (`broker events digests`). An archive whose newest segments were removed looks
    whole by itself; `broker archive status` compares it with Redis.
    """
    from broker.events.archive import storage

    where = storage.opened(settings)
    found = _verified(where, settings, log_id, streams)
    if not any(one.damage for one in found):
        found = asyncio.run(_vouched(where, settings, log_id, digests, found))
    if as_json:
        print_json(found)
    else:
        for one in found:
            end = f"up to {one.last}" if one.last else "nothing yet"
            good = "" if one.damage is None else ", before the damage"
            signed = "" if one.vouched is None else f", signed for: {one.vouched}"
            click.echo(f"{one.stream}: segments {one.segments}, events {one.events} {end}{good}{signed}")
            if one.damage is not None:
                click.echo(f"{click.style('damaged', fg='red')}: {one.damage}")
    sys.exit(1 if any(one.damage for one in found) else 0)


async def _status(settings: Settings) -> list[Standing]:
    from broker.cli import opening
    from broker.events import inspection
    from broker.events.archive import storage
    from broker.events.archive.store import StreamArchive

    where = storage.opened(settings)
    async with opening.log(settings) as (redis, keys):
        log_id = await inspection.log_id(redis, settings.log_name)
        streams = await inspection.streams(redis, keys)
    newest = {one.stream: StreamArchive(where, log_id, one.stream).last() for one in streams}
    return [_standing(one, newest[one.stream]) for one in streams]


def _standing(stream: Stream, newest: Manifest | None) -> Standing:
    events = newest.events if newest else 0
    return Standing(
        stream=stream.stream,
        segments=newest.number if newest else 0,
        events=events,
        last=str(newest.end) if newest else None,
        sealed_at=newest.sealed_at if newest else None,
        behind=max(0, stream.added - events),
        trimmed=stream.added - stream.length,
        held_by=stream.held_by,
    )


def _show(found: list[Standing]) -> None:
    from broker.cli import tables

    names = ("stream", "segments", "events", "last", "sealed at", "behind", "trimmed", "held by")
    rows = [
        (
            one.stream,
            str(one.segments),
            str(one.events),
            one.last or "–",
            one.sealed_at or "–",
            str(one.behind),
            str(one.trimmed),
            one.held_by or "",
        )
        for one in found
    ]
    tables.show(names, rows, ("segments", "events", "behind", "trimmed"))


def _verified(
    where: Storage, settings: Settings, given: str | None, names: tuple[str, ...]
) -> list[Verified]:
    from broker.events.archive import store
    from broker.events.archive.verification import verify as check

    log_id, known = meant(where, settings, given)
    for name in names:
        if name not in known:
            raise NotFound(f"{where.shown} holds no stream {name}; there are {', '.join(known)}.")
    return [check(store.StreamArchive(where, log_id, name)) for name in names or known]


async def _vouched(
    where: Storage, settings: Settings, given: str | None, kept: Path | None, found: list[Verified]
) -> list[Verified]:
    """The same, held against digests."""
    from broker.cli import verify
    from broker.events import exported_check
    from broker.events.digests import DigestInvalid
    from broker.events.exported_source import Archive

    source = Archive(where, meant(where, settings, given)[0])
    held = []
    try:
        known = await verify.trusted_digests(source, verify.own_keys(settings), kept)
    except DigestInvalid as error:
        return [msgspec.structs.replace(one, damage=str(error)) for one in found]
    for one in found:
        try:
            vouched = await exported_check.vouched(source, known, one.stream)
            held.append(msgspec.structs.replace(one, vouched=vouched))
        except BrokerError as error:
            if error.code not in exported_check.FINDINGS:
                raise
            held.append(msgspec.structs.replace(one, damage=str(error)))
    return held


def meant(where: Storage, settings: Settings, given: str | None) -> tuple[str, list[str]]:
    """The log of the archive that is meant, and its streams. Raises NotFound."""
    from broker.events.archive import store

    log_id = _log_id(settings, given)
    if log_id is None:
        logs = [name for name in where.names("") if not name.startswith(".")]
        if len(logs) != 1:
            raise NotFound(f"{where.shown} holds {len(logs)} logs ({', '.join(logs)}); name one by --log-id.")
        log_id = logs[0]
    known = store.streams(where, log_id)
    if not known:
        raise NotFound(f"{where.shown} holds nothing of the log {log_id} yet.")
    return log_id, known


def _log_id(settings: Settings, given: str | None) -> str | None:
    """The log that the data directory knows, unless one is named."""
    from broker.events import log_identity

    if given is not None:
        return given
    try:
        remembered = log_identity.read_file(settings)
    except BrokerError:
        return None
    return None if remembered is None else remembered.log_id
