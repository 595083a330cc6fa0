"""What every event says about itself: when, who, in which conversation, and because of what."""

from __future__ import annotations

import re
from uuid import uuid4

import msgspec

_HEX_UUID = re.compile(r"[0-9a-f]{32}\Z")
_CORRELATION = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """`at` in milliseconds since the epoch; `actor` as `client:demo`, `worker:x1`, `user:…`, `system`."""

    at: int
    actor: str
    correlation: bytes | str | None = None
    """16 bytes where it is a UUID, which is most of the time; use `correlation_id`."""
    causation: str | None = None
    """The position of the event that led to this one."""

    @property
    def correlation_id(self) -> str | None:
        """The correlation id as people write it."""
        return self.correlation.hex() if isinstance(self.correlation, bytes) else self.correlation


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Envelope)


def compact(correlation_id: str | None) -> bytes | str | None:
    """The stored form of a correlation id: 16 bytes for 32 lower-case hex digits."""
    if correlation_id is not None and _HEX_UUID.match(correlation_id):
        return bytes.fromhex(correlation_id)
    return correlation_id


def packed_correlation(correlation_id: str | None) -> bytes:
    """The correlation id as one msgpack value, which scripts splice into the envelopes they write."""
    return _encoder.encode(compact(correlation_id))


def encode(at: int, actor: str, correlation_id: str | None = None, causation: str | None = None) -> bytes:
    """The stored form of an envelope."""
    return _encoder.encode((at, actor, compact(correlation_id), causation))


def decode(stored: bytes) -> Envelope:
    """The envelope of a stored event. Raises msgspec.DecodeError."""
    return _decoder.decode(stored)


def new_correlation_id() -> str:
    """32 hex digits."""
    return uuid4().hex


def acceptable(correlation_id: str) -> bool:
    """Whether a caller's correlation id may be taken over: 1–64 of letters, digits, `.`, `_`, `-`."""
    return bool(_CORRELATION.match(correlation_id))
