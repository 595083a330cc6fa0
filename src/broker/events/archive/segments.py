"""Segments: a stretch of one stream's history in one compressed file, and the manifest that vouches for it.

A file is one zstd frame around blocks, each a length (4 bytes, big endian) and a msgpack array of entries. An
entry is `[ms, seq, values]`: the values of the four fields as they lay in the stream. What was no event of
this log keeps its fields too: an empty value first, then names and values in turn.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from broker.errors import BrokerError
from broker.events import feed, positions
from broker.events.codec import FIELDS, Stored
from broker.events.feed import Malformed
from broker.events.positions import Position

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FORMAT: Final = 1
LEVEL: Final = 3
BLOCK: Final = 2048
"""Entries in a block, at most: what a reader holds decoded at once."""
PER_FOLDER: Final = 1000
"""Segments in a folder: more make listing it slow."""
GENESIS: Final = "0" * 64
"""`previous` of a stream's first segment."""
_NAME: Final = re.compile(r"(\d{10})-e(\d+)\.json\Z")

Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Entry = Stored | Malformed
_Values = tuple[int, int, list[bytes]]

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[_Values]).decode


class ArchiveDamaged(BrokerError):
    """A segment of the archive is missing or was changed."""

    code = "archive_damaged"


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a segment holds. `first` and `last` are ids within the stream (`ms-seq`), sizes are bytes."""

    format: int = FORMAT
    log_id: str
    stream: str
    incarnation: str
    number: Annotated[int, Meta(ge=1)]
    epoch: Annotated[int, Meta(ge=1)]
    """Of the writer's lease: of two manifests with one number the higher epoch counts."""
    first: str
    last: str
    count: Annotated[int, Meta(ge=1)]
    events: Annotated[int, Meta(ge=1)]
    """Of the stream, from its beginning up to `last`."""
    plain_bytes: int
    bytes: int
    sha256: Digest
    """Of the segment's file."""
    previous: Digest
    """`sha256` of the segment before."""
    sealed_at: str

    @property
    def start(self) -> Position:
        """Of the first event."""
        return positions.at(self.stream, self.first)

    @property
    def end(self) -> Position:
        """Of the last event."""
        return positions.at(self.stream, self.last)

    @property
    def name(self) -> str:
        """The manifest's name within the stream's folder."""
        return f"{stem(self.number, self.epoch)}.json"

    @property
    def file(self) -> str:
        """The segment's name within the stream's folder."""
        return f"{stem(self.number, self.epoch)}.zst"


def stem(number: int, epoch: int) -> str:
    """The part of the names that segment and manifest share, with their folder."""
    return f"{folder(number)}/{number:010d}-e{epoch}"


def folder(number: int) -> str:
    """The folder, within the stream's, that holds the segment of this number."""
    return f"{number // PER_FOLDER:07d}"


def parse_name(name: str) -> tuple[int, int] | None:
    """Number and epoch out of a manifest's file name; None for any other file."""
    found = _NAME.match(name)
    return (int(found[1]), int(found[2])) if found else None


def encode_manifest(manifest: Manifest) -> bytes:
    """JSON for people, too."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def decode_manifest(content: bytes) -> Manifest:
    """The inverse. Raises ArchiveDamaged, also for a format that this version does not read."""
    try:
        found = msgspec.json.decode(content, type=Manifest)
        # The ids must be ids.
        _ = found.start, found.end
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
        raise ArchiveDamaged(f"its manifest cannot be read ({error})") from None
    if found.format != FORMAT:
        raise ArchiveDamaged(f"its format is {found.format}, this version reads {FORMAT}")
    return found


class Segment:
    """Entries gathered to become one segment. Encoded as they come, so that they take little room."""

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.count = 0
        self.size = 0
        """Of the blocks so far, in bytes."""
        self.first: Position | None = None
        self.last: Position | None = None
        self._blocks: list[bytes] = []

    def add(self, entries: Sequence[Entry]) -> None:
        """Append entries that follow on those already there."""
        for at in range(0, len(entries), BLOCK):
            part = entries[at : at + BLOCK]
            block = _encode([_values(entry) for entry in part])
            self._blocks += (len(block).to_bytes(4, "big"), block)
            self.size += len(block) + 4
        if entries:
            self.first = self.first or entries[0].position
            self.last = entries[-1].position
            self.count += len(entries)

    def pack(self) -> tuple[bytes, str]:
        """The file's content and its SHA-256."""
        content = zstd.compress(b"".join(self._blocks), LEVEL)
        return content, hashlib.sha256(content).hexdigest()


def unpack(manifest: Manifest, content: bytes) -> Iterator[list[Entry]]:
    """The entries of a segment, block by block, verified against its manifest.

    Nothing is given before the file's hash was found right. Raises ArchiveDamaged with what is wrong.
    """
    if hashlib.sha256(content).hexdigest() != manifest.sha256:
        raise ArchiveDamaged("its content does not have the SHA-256 of its manifest")
    count, last = 0, None
    for entries in _blocks(manifest.stream, content):
        for entry in entries:
            if last is not None and entry.position <= last:
                raise ArchiveDamaged(f"{entry.position} comes after {last}")
            last = entry.position
        if not count and entries and entries[0].position != manifest.start:
            raise ArchiveDamaged(f"it begins at {entries[0].position}, its manifest says {manifest.start}")
        count += len(entries)
        yield entries
    if (last, count) != (manifest.end, manifest.count):
        raise ArchiveDamaged(
            f"it holds {count} events up to {last}, its manifest says {manifest.count} up to {manifest.end}"
        )


def succeeds(manifest: Manifest, before: Manifest | None) -> str | None:
    """Why `manifest` cannot follow `before` (None: nothing), None when it does."""
    if manifest.previous != (GENESIS if before is None else before.sha256):
        return "it does not follow on the segment before it: `previous` is another hash"
    if manifest.events - manifest.count != (0 if before is None else before.events):
        return "its count of events does not continue that of the segment before it"
    if before is not None and manifest.start <= before.end:
        return f"it begins at {manifest.start}, the segment before it ends at {before.end}"
    return None


def _blocks(stream: str, content: bytes) -> Iterator[list[Entry]]:
    try:
        plain = memoryview(zstd.decompress(content))
        while plain:
            size = int.from_bytes(plain[:4], "big")
            yield [_entry(stream, *values) for values in _decode(plain[4 : 4 + size])]
            plain = plain[4 + size :]
    except (zstd.ZstdError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ArchiveDamaged(f"its content cannot be read ({error})") from None


def _values(entry: Entry) -> tuple[int, int, Sequence[bytes]]:
    _, ms, seq = entry.position
    if isinstance(entry, Stored):
        return ms, seq, (entry.tag.encode("ascii"), entry.subject, entry.envelope, entry.data)
    return ms, seq, (b"", *entry.fields)


def _entry(stream: str, ms: int, seq: int, values: list[bytes]) -> Entry:
    if len(values) == len(FIELDS):
        return Stored(Position(stream, ms, seq), values[0].decode("ascii"), *values[1:])
    return feed.entry(Position(stream, ms, seq), values[1:])
