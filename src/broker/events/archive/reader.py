"""Reading history: the archive from any position on, then the stream, without a gap or an overlap."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Final, TypeVar

import msgspec

from broker.errors import BrokerError
from broker.events import feed, positions
from broker.events.archive.segments import ArchiveDamaged, Entry, Manifest
from broker.events.archive.store import StreamArchive
from broker.events.connection import Redis
from broker.events.keys import StreamKeys
from broker.events.positions import Position
from broker.events.scripting import Script

T = TypeVar("T")
PAGE: Final = 2000
_tail: Final = Script("archive_tail", allow_oom=True)


class HistoryGap(BrokerError):
    """Events are neither in the stream nor in the archive."""

    code = "history_gap"


class Archived(msgspec.Struct, frozen=True):
    """A segment and its events in blocks; only those that were asked for."""

    manifest: Manifest
    blocks: list[list[Entry]]


async def archived(archive: StreamArchive, after: Position) -> AsyncIterator[Archived]:
    """The archived events after `after`, a whole verified segment at a time.

    Raises ArchiveDamaged naming the first bad segment, ArchiveUnavailable.
    """
    retried = False
    while True:
        try:
            walk = archive.manifests(after)
            while (manifest := await _step(walk)) is not None:
                found = await asyncio.to_thread(_read, archive, manifest, after)
                yield found
                after, retried = manifest.end, False
            return
        except ArchiveDamaged:
            # A segment that a newer writer replaced while we read fits no longer; a second look finds that.
            if retried:
                raise
            retried = True


async def history(
    archive: StreamArchive, redis: Redis, keys: StreamKeys, incarnation: str, after: Position
) -> AsyncIterator[list[Entry]]:
    """Every event after `after` up to now, in blocks: archived ones first, the rest from the stream.

    What is archived and trimmed while this reads is found in the archive. Raises as `archived`, and
    LogUnavailable, LogRefused, and HistoryGap when events are in neither.
    """
    while True:
        async for segment in archived(archive, after):
            for block in segment.blocks:
                yield block
            after = segment.manifest.end
        while True:
            page = await _page(redis, keys, incarnation, after)
            if page.first > after and await _archived_since(archive, after, page):
                break
            if not page.entries:
                return
            yield page.entries
            after = page.entries[-1].position


class _Page(msgspec.Struct, frozen=True):
    first: Position
    """Where the stream begins: its start while nothing was trimmed from it."""
    trimmed: int
    entries: list[Entry]


async def _page(redis: Redis, keys: StreamKeys, incarnation: str, after: Position) -> _Page:
    """The stream's entries after `after`."""
    first, trimmed, found = await _tail(redis, [keys.meta, keys.events], [incarnation, after.entry_id, PAGE])
    entries = [feed.entry(positions.at(keys.stream, entry_id), fields) for entry_id, fields in found]
    return _Page(positions.at(keys.stream, first), trimmed, entries)


async def _archived_since(archive: StreamArchive, after: Position, page: _Page) -> bool:
    """Whether events after `after` are in the archive by now.

    Only what is archived is trimmed, so one look at the archive after the page tells. Raises HistoryGap when
    the archive holds fewer events than the stream has lost.
    """
    newest = await asyncio.to_thread(archive.last)
    held = 0 if newest is None else newest.events
    if held < page.trimmed:
        raise HistoryGap(
            f"Stream {archive.stream} has lost its first {page.trimmed} events, {archive.shown} holds {held}."
        )
    return newest is not None and newest.end > after


def _read(archive: StreamArchive, manifest: Manifest, after: Position) -> Archived:
    """Read and verify the whole segment before any of it is given out."""
    blocks = list(archive.read(manifest))
    if manifest.start <= after:
        kept = ([entry for entry in block if entry.position > after] for block in blocks)
        blocks = [block for block in kept if block]
    return Archived(manifest, blocks)


async def _step(walk: Iterator[T]) -> T | None:
    return await asyncio.to_thread(next, walk, None)
