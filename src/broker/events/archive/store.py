"""One stream's archive: its segments by number, sealed one after another, read back and verified.

A manifest is put last, so a segment without one is none. Names carry the writer's fencing epoch; where two
writers gave the same number, which takes a paused process, the higher epoch counts: its writer looked here
after it had got the lease, and by then the other's epoch could no longer make anything trimmed. What a writer
did not live to record in Redis is put again by the next owner, so that nothing late can replace it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from broker.events import positions
from broker.events.archive import segments
from broker.events.archive.segments import ArchiveDamaged, Entry, Manifest
from broker.events.archive.storage import Storage
from broker.events.positions import Position

_FILE: Final = re.compile(r"(\.?)(\d{10})-e(\d+)\.")
"""A file of a segment; with a dot in front it was never finished."""


class StreamArchive:
    """The archive of one stream. Everything blocks, so call it in a thread. Raises ArchiveUnavailable."""

    def __init__(self, storage: Storage, log_id: str, stream: str) -> None:
        self.stream = stream
        self.log_id = log_id
        self.base = f"{log_id}/{stream}"
        self._storage = storage

    @property
    def shown(self) -> str:
        """Where it lies, for people."""
        return f"{self._storage.shown}/{self.base}"

    # -- Writing ------------------------------------------------------------------------------------------

    def put_segment(self, manifest: Manifest, content: bytes) -> None:
        """Store a segment's content; it does not count before its manifest is there."""
        self._storage.put(f"{self.base}/{manifest.file}", content)

    def put_manifest(self, manifest: Manifest) -> None:
        """Make the segment count. Durable on return."""
        self._storage.put(f"{self.base}/{manifest.name}", segments.encode_manifest(manifest))

    def tidy(self, upto: int) -> int:
        """Remove what killed writers left of segments up to this number; how many files.

        A later number may still be in a living writer's hands.
        """
        removed = 0
        for folder in self._folders()[-2:]:
            counting = self._numbers(folder)
            for name in self._storage.names(f"{self.base}/{folder}"):
                found = _FILE.match(name)
                if found is None or int(found[2]) > upto:
                    continue
                if found[1] or counting.get(int(found[2])) != int(found[3]):
                    self._storage.remove(f"{self.base}/{folder}/{name}")
                    removed += 1
        return removed

    # -- Reading ------------------------------------------------------------------------------------------

    def last(self) -> Manifest | None:
        """The manifest of the newest segment, None while there is none. Raises ArchiveDamaged."""
        for folder in reversed(self._folders()):
            if numbers := self._numbers(folder):
                number = max(numbers)
                return self.manifest(number, numbers[number])
        return None

    def holds(self, manifest: Manifest) -> bool:
        """Whether this very segment still counts."""
        return self._numbers(segments.folder(manifest.number)).get(manifest.number) == manifest.epoch

    def find(self, number: int) -> Manifest | None:
        """The manifest that counts for a number, None where there is none. Raises ArchiveDamaged."""
        epoch = self._numbers(segments.folder(number)).get(number)
        return None if epoch is None else self.manifest(number, epoch)

    def manifest(self, number: int, epoch: int) -> Manifest:
        """One manifest. Raises ArchiveDamaged when it is missing, unreadable or another's."""
        name = f"{segments.stem(number, epoch)}.json"
        content = self._storage.get(f"{self.base}/{name}")
        if content is None:
            raise self.damaged(number, "its manifest is missing")
        try:
            found = segments.decode_manifest(content)
        except ArchiveDamaged as error:
            raise self.damaged(number, error.detail) from None
        if (found.log_id, found.stream, found.number, found.epoch) != (
            self.log_id,
            self.stream,
            number,
            epoch,
        ):
            raise self.damaged(number, "its manifest belongs to another segment")
        return found

    def manifests(self, after: Position) -> Iterator[Manifest]:
        """The manifests of the segments that hold events after `after`, in order, each following on the last.

        The segment before the first of them is looked at too. Raises ArchiveDamaged naming the first that is
        missing or does not follow.
        """
        newest = self.last()
        if newest is None or newest.end <= after:
            return
        number = self._first_after(after, newest) if after > positions.start(self.stream) else 1
        before = None
        if number > 1 and (before := self.find(number - 1)) is None:
            raise self.damaged(number - 1, "it is missing")
        listed: dict[int, int] = {}
        while True:
            # One listing for all segments of a folder, and another look at the end of what it showed.
            if number not in listed:
                listed = self._numbers(segments.folder(number))
            if number not in listed:
                if (end := self.last()) is not None and end.number > number:
                    raise self.damaged(number, "it is missing")
                return
            found = self.manifest(number, listed[number])
            if why := segments.succeeds(found, before):
                raise self.damaged(number, why)
            yield found
            before, number = found, number + 1

    def content(self, manifest: Manifest) -> bytes:
        """A segment's file, not looked at. Raises ArchiveDamaged where it is missing."""
        content = self._storage.get(f"{self.base}/{manifest.file}")
        if content is None:
            raise self.damaged(manifest.number, "its content is missing")
        return content

    def read(self, manifest: Manifest) -> Iterator[list[Entry]]:
        """A segment's events in blocks. Raises ArchiveDamaged."""
        content = self.content(manifest)
        try:
            yield from segments.unpack(manifest, content)
        except ArchiveDamaged as error:
            raise self.damaged(manifest.number, error.detail) from None

    def damaged(self, number: int, why: str) -> ArchiveDamaged:
        """The error that names a segment."""
        return ArchiveDamaged(f"Segment {number} of stream {self.stream} in {self.shown}: {why}.")

    def _first_after(self, after: Position, newest: Manifest) -> int:
        """The number of the first segment that ends after `after`, by halves; of a missing one before it."""
        low, high = 1, newest.number
        while low < high:
            middle = (low + high) // 2
            found = self.find(middle)
            if found is None:
                # It does not tell which half; whoever asked wants to know of the first that is missing.
                while (found := self.find(low)) is not None and found.end <= after:
                    low += 1
                return low
            low, high = (low, middle) if found.end > after else (middle + 1, high)
        return low

    def _folders(self) -> list[str]:
        return [name for name in self._storage.names(self.base) if name.isdigit()]

    def _numbers(self, folder: str) -> dict[int, int]:
        """The segments of a folder: number → the epoch that counts."""
        found: dict[int, int] = {}
        for name in self._storage.names(f"{self.base}/{folder}"):
            if parsed := segments.parse_name(name):
                number, epoch = parsed
                found[number] = max(epoch, found.get(number, 0))
        return found


def streams(storage: Storage, log_id: str) -> list[str]:
    """The streams of a log that the archive knows: partitions in order, then the others."""
    names = [name for name in storage.names(log_id) if not name.startswith(".")]
    return sorted(names, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
