"""Checking an archive by itself: every file against its manifest, every manifest against the one before."""

from __future__ import annotations

import msgspec

from broker.events import positions
from broker.events.archive.segments import ArchiveDamaged, Manifest
from broker.events.archive.store import StreamArchive


class Verified(msgspec.Struct, frozen=True):
    """How far a stream's archive was found right; `damage` says what is wrong after that, and where."""

    stream: str
    segments: int
    events: int
    bytes: int
    """Of the segments' files."""
    last: str | None
    """Position of the last event found right."""
    sha256: str | None
    """Of the last segment found right."""
    damage: str | None = None
    vouched: int | None = None
    """Events that signed digests vouch for; None where that was not looked at."""


def verify(archive: StreamArchive) -> Verified:
    """Read a stream's whole archive; stops at the first bad segment. Blocks. Raises ArchiveUnavailable."""
    number, size = 0, 0
    newest: Manifest | None = None
    damage = None
    try:
        for manifest in archive.manifests(positions.start(archive.stream)):
            for _ in archive.read(manifest):
                pass
            number, size, newest = number + 1, size + manifest.bytes, manifest
    except ArchiveDamaged as error:
        damage = error.detail
    return Verified(
        archive.stream,
        number,
        0 if newest is None else newest.events,
        size,
        None if newest is None else str(newest.end),
        None if newest is None else newest.sha256,
        damage,
    )
