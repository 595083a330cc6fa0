"""One stream's history out of all that is left of it: archive, audit log, Redis.

Archive and audit log hold the beginning of one and the same history, without a gap. What Redis has after
their end follows on it. What Redis has before their end and they do not know was taken in by an older Redis
that had been put back, at a time when its clock was behind: a stray.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import AsyncIterator
from typing import Literal

from broker.events import positions
from broker.events.archive import reader
from broker.events.archive.segments import Entry
from broker.events.archive.store import StreamArchive
from broker.events.codec import Stored
from broker.events.connection import Redis
from broker.events.feed import Malformed
from broker.events.keys import StreamKeys
from broker.events.positions import Position
from broker.events.repair import left
from broker.events.repair.tables import Tables

Source = Literal["archive", "tables", "log"]


class Remains:
    """What is left of one stream. `strays` and `missing` are of the last reading."""

    def __init__(self, redis: Redis, keys: StreamKeys, archive: StreamArchive, tables: Tables | None) -> None:
        self._redis = redis
        self._keys = keys
        self._archive = archive
        self._tables = tables
        self.strays: list[Entry] = []
        self.missing = 0
        """Events that Redis no longer has though nobody cut them; of a reading from the start."""
        self._floor = positions.start(keys.stream)
        self._below = 0

    async def read(self, after: Position) -> AsyncIterator[tuple[Source, list[Entry]]]:
        """The history after `after`, in order, in blocks, with where each was found.

        Raises ArchiveDamaged, ArchiveUnavailable, LogUnavailable, StoreUnavailable, AuditChanged.
        """
        self.strays, self.missing, self._below = [], 0, 0
        found = await left.look(self._redis, self._keys)
        self._floor = found.floor
        live = left.entries(self._redis, self._keys, after)
        page: list[Entry] = await anext(live, [])
        async for source, block in self._known(after):
            yield source, block
            page = await self._compared(page, live, block)
        # An older Redis without entries that went on: the gap before its first one was never all cut.
        self.missing += max(0, self._below - found.trimmed)
        while page:
            yield "log", page
            page = await anext(live, [])

    async def _known(self, after: Position) -> AsyncIterator[tuple[Source, list[Entry]]]:
        async for segment in reader.archived(self._archive, after):
            for block in segment.blocks:
                yield "archive", block
            after = segment.manifest.end
        if self._tables is not None:
            async for rows in self._tables.recorded(self._keys.stream, after):
                yield "tables", list(rows)

    async def _compared(
        self, page: list[Entry], live: AsyncIterator[list[Entry]], block: list[Entry]
    ) -> list[Entry]:
        """Pass over what Redis has up to the block's end, keeping what the block does not know; the rest."""
        end = block[-1].position
        if end <= self._floor:
            self._below += len(block)
            return page
        self._below += bisect_right(block, self._floor, key=lambda entry: entry.position)
        known = {entry.position: entry for entry in block if entry.position > self._floor}
        self.missing += len(known)
        while page and page[0].position <= end:
            upto = next((n for n, entry in enumerate(page) if entry.position > end), len(page))
            others = [entry for entry in page[:upto] if not same(known.get(entry.position), entry)]
            self.strays += others
            self.missing -= upto - len(others)
            page = page[upto:] or await anext(live, [])
        return page


def same(one: Entry | None, other: Entry) -> bool:
    """Whether both are the same bytes at the same place."""
    if isinstance(one, Malformed) and isinstance(other, Malformed):
        return list(one.fields) == list(other.fields)
    return isinstance(one, Stored) and one == other


def fields_of(entry: Entry) -> list[bytes]:
    """Names and values in turn, as they lie in the stream."""
    if isinstance(entry, Malformed):
        return list(entry.fields)
    return [b"t", entry.tag.encode(), b"s", entry.subject, b"m", entry.envelope, b"d", entry.data]
