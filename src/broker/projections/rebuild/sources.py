"""Where a rebuild reads: the archive and then the log, or the archive alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Protocol

from broker.events import exported_source, feed, positions
from broker.events.archive import reader, store
from broker.events.archive.storage import Storage
from broker.events.archive.store import StreamArchive
from broker.events.codec import Stored
from broker.events.connection import Redis
from broker.events.exported_source import History
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.events.positions import Position


class Source(exported_source.Source, Protocol):
    """A history with its size; `incarnations` by stream name."""

    incarnations: Mapping[str, str]

    async def totals(self) -> dict[str, int]:
        """How many events each stream ever got."""
        ...


class LogSource(History):
    """The whole history of one log: the archive, then what lies in Redis."""

    def __init__(self, redis: Redis, keys: LogKeys, identity: LogIdentity, storage: Storage) -> None:
        super().__init__(redis, keys, identity, storage)
        self.incarnations: Mapping[str, str] = identity.incarnations
        self._log = redis, keys

    async def totals(self) -> dict[str, int]:
        """As in Source. Raises LogUnavailable."""
        redis, keys = self._log
        return {
            one.stream: (await feed.ahead(redis, one, positions.start(one.stream))).added
            for one in keys.streams
        }


class ArchiveSource:
    """What is archived of the log `log_id`, with nothing but the archive. Raises ArchiveUnavailable.

    `incarnations`: those of the log's present life, where they are known; segments name those of their time.
    """

    def __init__(self, storage: Storage, log_id: str, incarnations: Mapping[str, str] | None = None) -> None:
        self._archives = {
            name: StreamArchive(storage, log_id, name) for name in store.streams(storage, log_id)
        }
        newest = {name: archive.last() for name, archive in self._archives.items()}
        self.incarnations: Mapping[str, str] = {
            name: (incarnations or {}).get(name, last.incarnation)
            for name, last in newest.items()
            if last is not None
        }
        self.streams = tuple(self.incarnations)

    async def totals(self) -> dict[str, int]:
        """As in Source. Raises ArchiveUnavailable, ArchiveDamaged."""
        newest = {name: await asyncio.to_thread(archive.last) for name, archive in self._archives.items()}
        return {name: 0 if last is None else last.events for name, last in newest.items()}

    async def blocks(self, stream: str, after: Position) -> AsyncGenerator[list[Stored]]:
        """As in Source. Raises ArchiveDamaged, ArchiveUnavailable, UnknownEvent."""
        async for segment in reader.archived(self._archives[stream], after):
            for block in segment.blocks:
                yield [exported_source.event(entry) for entry in block]
