"""Where exports, digests and verifications read events: each stream in order, as it was stored."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from itertools import takewhile
from typing import Protocol

import msgspec

from broker.events import chain
from broker.events.archive import reader, store
from broker.events.archive.segments import Entry
from broker.events.archive.storage import Storage
from broker.events.archive.store import StreamArchive
from broker.events.codec import Stored
from broker.events.connection import Redis
from broker.events.feed import Malformed
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.events.positions import Position


class Source(Protocol):
    """A history that can be read from any position on."""

    streams: tuple[str, ...]

    def blocks(self, stream: str, after: Position) -> AsyncGenerator[list[Stored]]:
        """Every event of a stream after a position up to now, in order, in blocks.

        Raises LogUnavailable, LogRefused, and UnknownEvent for an entry that is no event.
        """
        ...


class History:
    """The whole history of one log: the archive, then what lies in Redis."""

    def __init__(self, redis: Redis, keys: LogKeys, identity: LogIdentity, storage: Storage) -> None:
        self._redis = redis
        self._identity = identity
        self._storage = storage
        self._keys = {stream.stream: stream for stream in keys.streams}
        self.streams = tuple(self._keys)

    async def blocks(self, stream: str, after: Position) -> AsyncGenerator[list[Stored]]:
        """As in Source; also raises ArchiveDamaged, ArchiveUnavailable and HistoryGap."""
        archive = StreamArchive(self._storage, self._identity.log_id, stream)
        incarnation = self._identity.incarnations[stream]
        async for block in reader.history(archive, self._redis, self._keys[stream], incarnation, after):
            yield [event(entry) for entry in block]


class Archive:
    """What the archive of one log holds, without the log."""

    def __init__(self, storage: Storage, log_id: str) -> None:
        self._storage = storage
        self._log_id = log_id
        self.streams = tuple(store.streams(storage, log_id))

    async def blocks(self, stream: str, after: Position) -> AsyncGenerator[list[Stored]]:
        """As in Source; raises ArchiveDamaged, ArchiveUnavailable, and UnknownEvent after what was before."""
        archive = StreamArchive(self._storage, self._log_id, stream)
        async for segment in reader.archived(archive, after):
            for block in segment.blocks:
                good = list(takewhile(lambda entry: isinstance(entry, Stored), block))
                if good:
                    yield [event(entry) for entry in good]
                if len(good) < len(block):
                    event(block[len(good)])


def event(entry: Entry) -> Stored:
    """An entry as the event that it is. Raises UnknownEvent for what is none."""
    if isinstance(entry, Malformed):
        raise entry.error
    return entry


class Linked(msgspec.Struct, frozen=True, gc=False):
    """An event in its place in the hash chain; 32 bytes each."""

    stored: Stored
    previous: bytes
    hash: bytes


async def linked(
    source: Source, stream: str, after: Position, head: bytes, *, upto: Position | None = None
) -> AsyncGenerator[list[Linked]]:
    """The events after `after`, where the chain is at `head`, up to and with `upto`. Raises as `blocks`."""
    async with aclosing(source.blocks(stream, after)) as blocks:
        async for block in blocks:
            found = []
            for entry in block:
                if upto is not None and entry.position > upto:
                    break
                digest = chain.link(head, entry)
                found.append(Linked(entry, head, digest))
                head = digest
            if found:
                yield found
            if len(found) < len(block):
                return
