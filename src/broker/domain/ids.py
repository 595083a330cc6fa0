"""Message ids: UUIDv7 (RFC 9562) whose last byte names the partition.

Time-ordered, so that inserts into MySQL stay sequential; routable, so that a status read finds its
partition without a lookup; readable as any UUID.
"""

from __future__ import annotations

import os
import threading
from uuid import UUID

from broker import clock
from broker.errors import NotFound, ValidationError

MessageId = bytes
"""16 bytes; `text` gives the canonical form."""

MAX_PARTITIONS = 256

_lock = threading.Lock()
_last = 0


def _ticks() -> int:
    """Milliseconds and a 12-bit counter in one number that only grows (RFC 9562, 6.2, method 1)."""
    global _last
    with _lock:
        _last = max(_last + 1, clock.now_ms() << 12)
        return _last


def new(partition: int) -> MessageId:
    """A fresh id in `partition` (0–255)."""
    ticks = _ticks()
    head = (ticks >> 12) << 16 | 0x7000 | (ticks & 0xFFF)
    tail = bytearray(os.urandom(8))
    tail[0] = 0x80 | (tail[0] & 0x3F)
    tail[7] = partition
    return head.to_bytes(8, "big") + bytes(tail)


def partition(message_id: MessageId) -> int:
    """The partition that the id names."""
    return message_id[15]


def created_ms(message_id: MessageId) -> int:
    """Milliseconds since the epoch at which the id was made, by its maker's clock."""
    return int.from_bytes(message_id[:6], "big")


def text(message_id: MessageId) -> str:
    """`019a…-…-7…-…-…`, lower case with hyphens."""
    raw = message_id.hex()
    return f"{raw[:8]}-{raw[8:12]}-{raw[12:16]}-{raw[16:20]}-{raw[20:]}"


def parse(value: str, partitions: int = MAX_PARTITIONS, field: str = "message_id") -> MessageId:
    """The 16 bytes of a canonical message id. Raises ValidationError for anything else."""
    parsed = _uuid(value)
    if parsed is None or parsed.version != 7:
        raise ValidationError(field, "must be a message id: a UUIDv7 in canonical form")
    if parsed.bytes[15] >= partitions:
        raise ValidationError(field, "is not an id of this log: its partition does not exist")
    return parsed.bytes


def find(value: str, partitions: int) -> MessageId:
    """As `parse`, of a message that is asked for: a UUID that no message can have raises NotFound."""
    try:
        return parse(value, partitions)
    except ValidationError:
        if _uuid(value) is None:
            raise
        raise NotFound("There is no such message.") from None


def _uuid(value: str) -> UUID | None:
    """What this names in the canonical form, of whatever version."""
    try:
        parsed = UUID(value)
    except (ValueError, AttributeError, TypeError):
        return None
    return parsed if str(parsed) == value.lower() else None
