"""Archivers under test, and what they leave."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from broker.events.archive.archiver import Archiver, Limits
from broker.events.archive.reader import archived, history
from broker.events.archive.segments import Entry, Manifest
from broker.events.archive.storage import LocalStorage, Storage
from broker.events.archive.store import StreamArchive
from broker.events.feed import Feed, entry
from broker.events.keys import ARCHIVE_GROUP, StreamKeys
from broker.events.positions import Position, at, start

LOG_ID = "log"
SMALL = Limits(size=2_000, seconds=0.05, poll=0.02, page=10)
"""Some entries a segment, and no waiting."""


def stream_archive(where: Path | Storage, stream: str = "0") -> StreamArchive:
    """The archive of a stream in a directory or storage."""
    return StreamArchive(LocalStorage(where) if isinstance(where, Path) else where, LOG_ID, stream)


def archiver(
    redis: Any,
    keys: StreamKeys,
    where: Path | Storage,
    *,
    owner: str = "a1",
    ttl: float = 1.0,
    limits: Limits = SMALL,
) -> Archiver:
    """An archiver of one stream of a log made by `support.log`."""
    feed = Feed(
        redis,
        keys,
        f"inc-{keys.stream}",
        owner,
        ttl,
        group=ARCHIVE_GROUP,
        lease=keys.archive_lease,
    )
    return Archiver(feed, stream_archive(where, keys.stream), limits)


@asynccontextmanager
async def running(*archivers: Archiver):
    """The archivers at work; stopped, and their errors raised, at the end."""
    stop = asyncio.Event()
    tasks = [asyncio.create_task(each.run(stop)) for each in archivers]
    try:
        yield archivers
    finally:
        stop.set()
        await asyncio.gather(*tasks)


def manifests(archive: StreamArchive) -> list[Manifest]:
    """Every manifest that counts, in order."""
    return list(archive.manifests(start(archive.stream)))


async def entries(archive: StreamArchive, after: Position | None = None) -> list[Entry]:
    """Every archived entry after a position."""
    found: list[Entry] = []
    async for segment in archived(archive, after or start(archive.stream)):
        for block in segment.blocks:
            found += block
    return found


async def whole(
    redis: Any, keys: StreamKeys, archive: StreamArchive, after: Position | None = None
) -> list[Entry]:
    """Archive and stream as one history."""
    found: list[Entry] = []
    async for block in history(archive, redis, keys, f"inc-{keys.stream}", after or start(keys.stream)):
        found += block
    return found


async def lying(redis: Any, keys: StreamKeys) -> list[Entry]:
    """What lies in the stream, read by a way of its own."""
    return [
        entry(at(keys.stream, entry_id), [part for pair in fields.items() for part in pair])
        for entry_id, fields in await redis.xrange(keys.events)
    ]


def same(one: list[Entry], other: list[Entry]) -> bool:
    """Whether two histories are equal; entries that are no events are compared by their fields."""

    def plain(found: list[Entry]) -> list[Any]:
        return [each if hasattr(each, "data") else (each.position, list(each.fields)) for each in found]

    return plain(one) == plain(other)


def renamed(found: Entry, tag: str) -> Entry:
    """The entry under another tag."""
    return msgspec.structs.replace(found, tag=tag)
