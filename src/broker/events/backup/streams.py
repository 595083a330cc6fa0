"""Backing up one stream: the segments that are new, and the events after the last of them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from broker import clock
from broker.events import positions
from broker.events.archive import reader, segments
from broker.events.archive.segments import GENESIS, Manifest, Segment
from broker.events.archive.store import StreamArchive
from broker.events.backup import layout
from broker.events.backup.layout import BackupDamaged, BackupError, File, Inventory, StreamPart
from broker.events.backup.repository import Repository
from broker.events.connection import Redis
from broker.events.keys import PartitionKeys, StreamKeys
from broker.events.positions import Position
from broker.events.scripting import Script

_end: Final = Script("backup_end", allow_oom=True)


class End(msgspec.Struct, frozen=True):
    """Where a stream ended at one moment: its last event (None where Redis held none), and what was open."""

    last: Position | None
    bound: Position
    """No event before that moment lies after it, and none since before it."""
    added: int
    open: int | None


async def end(redis: Redis, keys: StreamKeys, incarnation: str) -> End:
    """Where the stream ends now. Raises LogUnavailable, LogRefused."""
    names = [keys.meta, keys.events, *([keys.open] if isinstance(keys, PartitionKeys) else [])]
    last, bound, added, waiting = await _end(redis, names, [incarnation])
    return End(
        positions.at(keys.stream, last) if last else None,
        positions.at(keys.stream, bound),
        int(added),
        None if int(waiting) < 0 else int(waiting),
    )


class StreamBackup:
    """One stream's part of the backup `name`; a segment of the tail has `size` bytes before compression."""

    def __init__(
        self,
        repository: Repository,
        archive: StreamArchive,
        name: str,
        incarnation: str,
        *,
        size: int,
        on_events: Callable[[int], None],
    ) -> None:
        self._repository = repository
        self._archive = archive
        self._name = name
        self._incarnation = incarnation
        self._size = size
        self._on_events = on_events

    async def take(self, redis: Redis, keys: StreamKeys, end: End, before: StreamPart | None) -> StreamPart:
        """Everything up to `end`; what `before`, an earlier backup's part, has is not copied again.

        Raises LogUnavailable, LogRefused, ArchiveDamaged, ArchiveUnavailable, HistoryGap, BackupError.
        """
        inventories, last = await asyncio.to_thread(self._copy, end, before)
        tail = await self._tail(redis, keys, end, last)
        final = tail[-1] if tail else last
        position = positions.start(keys.stream) if final is None else final.end
        if end.last is not None and position != end.last:
            raise BackupError(
                f"Stream {keys.stream} was to be read up to {end.last}; it ended at {position}."
            )
        events = 0 if final is None else final.events
        return StreamPart(
            position=position.entry_id, events=events, open=end.open, inventories=inventories, tail=tail
        )

    # -- Segments -----------------------------------------------------------------------------------------

    def _copy(self, end: End, before: StreamPart | None) -> tuple[list[Inventory], Manifest | None]:
        """The inventories of all segments that end no later than `end`, and the last of those."""
        kept, listed = self._shared(before)
        last = listed[-1] if listed else None
        if last is not None:
            self._on_events(last.events)
        after = positions.start(self._archive.stream) if last is None else last.end
        for manifest in self._archive.manifests(after):
            if manifest.end > end.bound:
                break
            if why := segments.succeeds(manifest, last):
                raise self._archive.damaged(manifest.number, why)
            if listed and segments.folder(manifest.number) != segments.folder(listed[0].number):
                kept.append(self._list(listed))
                listed = []
            self._put(layout.segment_path(manifest), manifest)
            listed.append(manifest)
            last = manifest
            self._on_events(manifest.count)
        if listed:
            kept.append(self._list(listed))
        return kept, last

    def _shared(self, before: StreamPart | None) -> tuple[list[Inventory], list[Manifest]]:
        """What of an earlier backup the archive still says: whole folders, and the last folder's manifests.

        After a restore of an older backup the archive goes another way from there on.
        """
        kept = list(before.inventories) if before is not None else []
        while kept:
            inventory = kept.pop()
            try:
                found = self._repository.inventory(inventory)
            except BackupDamaged:
                # Read anew from the archive, and written anew.
                continue
            if not self._same(found[-1]):
                found = [each for each in found[:-1] if self._same(each)]
            if found:
                return kept, found
        return [], []

    def _same(self, manifest: Manifest) -> bool:
        found = self._archive.find(manifest.number)
        return found is not None and found.sha256 == manifest.sha256

    def _put(self, path: str, manifest: Manifest) -> None:
        content = self._archive.content(manifest)
        if hashlib.sha256(content).hexdigest() != manifest.sha256:
            raise self._archive.damaged(manifest.number, "its content is not that of its manifest")
        self._repository.put(path, content)

    def _list(self, manifests: list[Manifest]) -> Inventory:
        content = layout.encode_inventory(manifests)
        file = File.of(content)
        self._repository.put(layout.inventory_path(file), content)
        return Inventory(segments.folder(manifests[0].number), file, len(manifests))

    # -- The tail -----------------------------------------------------------------------------------------

    async def _tail(self, redis: Redis, keys: StreamKeys, end: End, last: Manifest | None) -> list[Manifest]:
        """The events between `last` and `end`, as segments of this backup alone."""
        if end.last is None or (last is not None and last.end >= end.last):
            return []
        found: list[Manifest] = []
        after = positions.start(keys.stream) if last is None else last.end
        segment = Segment(keys.stream)
        async for block in reader.history(self._archive, redis, keys, self._incarnation, after):
            taken = [entry for entry in block if entry.position <= end.last]
            segment.add(taken)
            if segment.size >= self._size:
                found.append(await asyncio.to_thread(self._pack, segment, found[-1] if found else last))
                segment = Segment(keys.stream)
            if len(taken) < len(block) or (taken and taken[-1].position == end.last):
                break
        if segment.count:
            found.append(await asyncio.to_thread(self._pack, segment, found[-1] if found else last))
        return found

    def _pack(self, segment: Segment, before: Manifest | None) -> Manifest:
        content, digest = segment.pack()
        assert segment.first is not None  # noqa: S101  only what has events is packed
        assert segment.last is not None  # noqa: S101
        manifest = Manifest(
            log_id=self._archive.log_id,
            stream=segment.stream,
            incarnation=self._incarnation,
            number=before.number + 1 if before else 1,
            epoch=before.epoch + 1 if before else 1,
            first=segment.first.entry_id,
            last=segment.last.entry_id,
            count=segment.count,
            events=segment.count + (before.events if before else 0),
            plain_bytes=segment.size,
            bytes=len(content),
            sha256=digest,
            previous=before.sha256 if before else GENESIS,
            sealed_at=clock.iso(clock.now_ms()),
        )
        self._repository.put(layout.tail_path(self._name, manifest), content)
        self._on_events(manifest.count)
        return manifest


def manifests_of(repository: Repository, part: StreamPart) -> Iterator[Manifest]:
    """The manifests of the segments that a part lists, in order, without its tail. Raises BackupDamaged."""
    for inventory in part.inventories:
        yield from repository.inventory(inventory)
