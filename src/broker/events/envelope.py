"""What every event says about itself: when, who, in which conversation, and because of what."""

from __future__ import annotations

import re
from uuid import uuid4

import msgspec

_UUID_BYTES = 16
_HEX_UUID = re.compile(r"[0-9a-f]{32}\Z")
_CORRELATION = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """`at` in milliseconds since the epoch; `actor` as `client:demo`, `worker:x1`, `user:…`, `system`."""

    at: int
    actor: str
    correlation: bytes | None = None
    """16 bytes where it is a UUID, which is most of the time, else `=` and its text; use `correlation_id`."""
    causation: str | None = None
    """The position of the event that led to this one."""

    @property
    def correlation_id(self) -> str | None:
        """The correlation id as people write it."""
        if self.correlation is None:
            return None
        if len(self.correlation) != _UUID_BYTES:
            # Neither `=` of the stored form can be part of an acceptable id.
            return self.correlation.lstrip(b"=").decode("utf-8", "replace")
        return self.correlation.hex()


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Envelope)


def conversation(envelope: Envelope, message_id: bytes | None) -> str | None:
    """The correlation id of an event; `message_id` where it is about a message.

    A message that came alone and without a correlation id is its own conversation, named by its id: that
    saves half a hundred bytes of Redis a message.
    """
    if envelope.correlation is None and message_id is not None:
        return message_id.hex()
    return envelope.correlation_id


def compact(correlation_id: str | None) -> bytes | None:
    """The stored form of a correlation id: 16 bytes for 32 lower-case hex digits, else `=` and the text."""
    if correlation_id is None:
        return None
    if _HEX_UUID.match(correlation_id):
        return bytes.fromhex(correlation_id)
    # `==` keeps a text of 15 characters from looking like a UUID's 16 bytes.
    text = correlation_id.encode()
    return b"=" + text if len(text) + 1 != _UUID_BYTES else b"==" + text


def packed_correlation(correlation_id: str | None) -> bytes:
    """The correlation id as one msgpack value, which scripts splice into the envelopes they write."""
    return _encoder.encode(compact(correlation_id))


def encode(at: int, actor: str, correlation_id: str | None = None, causation: str | None = None) -> bytes:
    """The stored form of an envelope."""
    return _encoder.encode((at, actor, compact(correlation_id), causation))


def splice(at: int, actor: str, packed: bytes, causation: str | None) -> bytes:
    """An envelope around a correlation id that is packed already (`packed_correlation`)."""
    return b"\x94" + _encoder.encode(at) + _encoder.encode(actor) + packed + _encoder.encode(causation)


def decode(stored: bytes) -> Envelope:
    """The envelope of a stored event. Raises msgspec.DecodeError."""
    return _decoder.decode(stored)


def new_correlation_id() -> str:
    """32 hex digits."""
    return uuid4().hex


def acceptable(correlation_id: str) -> bool:
    """Whether a caller's correlation id may be taken over: 1–64 of letters, digits, `.`, `_`, `-`."""
    return bool(_CORRELATION.match(correlation_id))
