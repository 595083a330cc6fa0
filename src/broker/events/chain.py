"""The hash chain: SHA-256 over the previous hash, the full id and the stored bytes, each with its length.

Nothing is decoded or encoded again, so that neither erasing a key nor upcasting breaks a proof. The data goes
in as its SHA-256, of parts where it holds a field that no export shows: such a field is represented by the
SHA-256 of its stored bytes. So an export, which shows that commitment in its place, still lets everybody
compute the hash. docs/audit.md says it byte by byte.
"""

from __future__ import annotations

import hashlib
from typing import Final

from broker.events.codec import Stored

GENESIS: Final = bytes(32)

COMMITTED: Final[dict[str, tuple[int, ...]]] = {
    "MessageSubmitted": (1, 2),
    "ResendRequested": (2,),
    "ClientRouteChanged": (3,),
    "UserCreated": (3,),
    "PasswordChanged": (1,),
}
"""By tag, the places of the fields that go into the hash as a commitment.

Never to be changed for a tag that was ever stored: withholding another field takes a new version.
"""

_sha256 = hashlib.sha256


def link(previous: bytes, entry: Stored) -> bytes:
    """The hash of `entry` after `previous` (32 bytes each)."""
    tag, subject, envelope = entry.tag.encode(), entry.subject, entry.envelope
    position = str(entry.position).encode()
    # One update instead of ten: the projector links every event there is.
    return _sha256(
        b"".join(
            (
                previous,
                len(position).to_bytes(4, "big"),
                position,
                len(tag).to_bytes(4, "big"),
                tag,
                len(subject).to_bytes(4, "big"),
                subject,
                len(envelope).to_bytes(4, "big"),
                envelope,
                data_digest(entry.tag, entry.data),
            )
        )
    ).digest()


def data_digest(tag: str, data: bytes) -> bytes:
    """33 bytes that stand for stored data: the number of its parts, and a SHA-256.

    Of one part: the part. Of several: literal parts with their length, commitments between.
    """
    if tag not in COMMITTED:
        return b"\x01" + _sha256(data).digest()
    parts = split(tag, data)
    if len(parts) == 1:
        return b"\x01" + _sha256(data).digest()
    joined: list[bytes] = []
    for place, part in enumerate(parts):
        if place % 2:
            joined.append(_sha256(part).digest())
        else:
            joined += (len(part).to_bytes(4, "big"), part)
    return bytes((len(parts),)) + _sha256(b"".join(joined)).digest()


def split(tag: str, data: bytes) -> list[bytes]:
    """The stored data cut at its committed fields: literal parts at even places, the fields' bytes between.

    A field that is null is part of the literal. Data of another form than its tag says is one literal part.
    """
    wanted = COMMITTED.get(tag)
    if wanted is None:
        return [data]
    try:
        spans = _spans(data, wanted)
    except (IndexError, ValueError):
        return [data]
    parts: list[bytes] = []
    done = 0
    for start, end in spans:
        parts += (data[done:start], data[start:end])
        done = end
    return [*parts, data[done:]]


# Bytes that follow the first byte of a msgpack value: of its length (texts and bytes), or all (numbers).
_TEXTS: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_NUMBERS: Final = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_NIL: Final = 0xC0
_BARE: Final = (0xC0, 0xC2, 0xC3)


def _spans(data: bytes, wanted: tuple[int, ...]) -> list[tuple[int, int]]:
    """Where the contents of these elements of a msgpack array lie. Raises ValueError, IndexError."""
    if not 0x90 <= data[0] <= 0x9F:
        raise ValueError(data[0])
    count, at = data[0] & 0x0F, 1
    found: list[tuple[int, int]] = []
    for place in range(wanted[-1] + 1):
        if place >= count:
            break
        kind = data[at]
        if 0xA0 <= kind <= 0xBF:
            start, end = at + 1, at + 1 + (kind & 0x1F)
        elif (width := _TEXTS.get(kind)) is not None:
            start = at + 1 + width
            end = start + int.from_bytes(data[at + 1 : start], "big")
        else:
            if place in wanted and kind != _NIL:
                raise ValueError(kind)
            at += 1 + _skipped(kind)
            continue
        if end > len(data):
            raise ValueError(end)
        if place in wanted:
            found.append((start, end))
        at = end
    return found


def _skipped(kind: int) -> int:
    if kind <= 0x7F or kind >= 0xE0 or kind in _BARE:
        return 0
    if (width := _NUMBERS.get(kind)) is None:
        raise ValueError(kind)
    return width
