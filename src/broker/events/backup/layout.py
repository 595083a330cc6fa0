"""What a backup directory holds, and what vouches for it.

    backup.json                         whose backups these are
    segments/<stream>/<folder>/…        archived segments, each once, shared by all backups
    inventories/<sha256>.zst            the manifests of a folder of segments
    keys/<backup>.sealed                the keys, one for all backups: it is replaced by each
    backups/<backup>/tail/…             events that were in no segment yet
    backups/<backup>/files/…            certificates and settings
    backups/<backup>/manifest.json      put last, with its signature beside it: without it there is no backup

A manifest names every file by its SHA-256: small ones itself, segments through inventories.
"""

from __future__ import annotations

import hashlib
import re
import sys
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from broker.errors import BrokerError
from broker.events.archive import segments
from broker.events.archive.segments import Digest, Manifest

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FORMAT: Final = 1
MARKER: Final = "backup.json"
MANIFEST: Final = "manifest.json"
SIGNATURE: Final = "manifest.sig"
_SIGNED: Final = b"broker backup 1\n"
"""In front of what is signed: the key signs digests, too, and neither may pass for the other."""
_NAME: Final = re.compile(r"\d{6}-\d{8}T\d{6}Z\Z")


class BackupError(BrokerError):
    """The backup could not be made or restored."""

    code = "backup_failed"

    def __str__(self) -> str:
        return self.detail


class BackupDamaged(BrokerError):
    """A file of the backup is missing or was changed."""

    code = "backup_damaged"


class Whose(msgspec.Struct, frozen=True):
    """The log that a directory has backups of."""

    format: int
    log_id: str


class File(msgspec.Struct, frozen=True):
    """A file by its content; `size` in bytes."""

    sha256: Digest
    size: Annotated[int, Meta(ge=0)]

    @classmethod
    def of(cls, content: bytes) -> File:
        """What is to be found again."""
        return cls(hashlib.sha256(content).hexdigest(), len(content))


class Inventory(msgspec.Struct, frozen=True):
    """The segments of one folder of a stream: where their manifests are, and how many."""

    folder: str
    file: File
    segments: Annotated[int, Meta(ge=1)]


class StreamPart(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup has of a stream: every event up to `position`, `events` in all."""

    position: str
    events: int
    open: int | None
    """Messages without an outcome at that position; None for a stream of no messages."""
    inventories: list[Inventory]
    tail: list[Manifest]
    """Of the events after the last segment, as segments that only this backup has."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One backup. `files` by path under `files/`; `keys` is the name of the file with the keys."""

    format: int = FORMAT
    name: str
    version: str
    log_id: str
    log_name: str
    partitions: int
    incarnations: dict[str, str]
    began_at: str
    finished_at: str
    streams: dict[str, StreamPart]
    files: dict[str, File]
    keys: str
    keys_file: File
    signer: str
    """The public key, in hex."""

    @property
    def events(self) -> int:
        """Of all streams."""
        return sum(part.events for part in self.streams.values())

    @property
    def open(self) -> int:
        """Messages without an outcome."""
        return sum(part.open or 0 for part in self.streams.values())


def name_of(number: int, iso: str) -> str:
    """A backup's name: its number in the directory, and when it began (`iso`)."""
    return f"{number:06d}-{re.sub(r'[-:]', '', iso.partition('.')[0].rstrip('Z'))}Z"


def number_of(name: str) -> int:
    """The number in a backup's name; 0 for what is none."""
    return int(name[:6]) if _NAME.match(name) else 0


def folder_of(name: str) -> str:
    """Where a backup's own files lie."""
    return f"backups/{name}"


def segment_path(manifest: Manifest) -> str:
    """Where a segment lies; two that differ never have the same path."""
    folder = segments.folder(manifest.number)
    return f"segments/{manifest.stream}/{folder}/{manifest.number:010d}-{manifest.sha256}.zst"


def tail_path(name: str, manifest: Manifest) -> str:
    """Where a segment of a backup's tail lies."""
    return f"{folder_of(name)}/tail/{manifest.stream}-{manifest.number:010d}-{manifest.sha256}.zst"


def inventory_path(file: File) -> str:
    """Where an inventory lies."""
    return f"inventories/{file.sha256}.zst"


def keys_path(name: str) -> str:
    """Where the keys lie."""
    return f"keys/{name}.sealed"


def signed(manifest: bytes) -> bytes:
    """What the signature of a manifest is over."""
    return _SIGNED + manifest


def encode_inventory(manifests: list[Manifest]) -> bytes:
    """The file of an inventory."""
    return zstd.compress(msgspec.json.encode(manifests))


def decode_inventory(content: bytes) -> list[Manifest]:
    """The inverse. Raises BackupDamaged."""
    try:
        return msgspec.json.decode(zstd.decompress(content), type=list[Manifest])
    except (zstd.ZstdError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BackupDamaged(f"it cannot be read ({error})") from None


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """The file of a manifest; JSON for people, too."""
    return msgspec.json.format(msgspec.json.encode(snapshot), indent=1) + b"\n"


def decode_snapshot(content: bytes) -> Snapshot:
    """The inverse. Raises BackupDamaged, also for a format that this version does not read."""
    try:
        found = msgspec.json.decode(content, type=Snapshot)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BackupDamaged(f"it cannot be read ({error})") from None
    if found.format != FORMAT:
        raise BackupDamaged(f"its format is {found.format}, this version reads {FORMAT}")
    return found
