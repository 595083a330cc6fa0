"""Between events and the four fields of a stream entry.

`t` tag (type and version), `s` subject, `m` envelope, `d` data. All entries have the same fields in the same
order, so that Redis stores the names once per block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from broker.errors import UnknownEvent
from broker.events import envelope as envelopes
from broker.events import types, upcasting
from broker.events.envelope import Envelope
from broker.events.positions import Position

FIELDS: Final = (b"t", b"s", b"m", b"d")

_encoder = msgspec.msgpack.Encoder()
_any = msgspec.msgpack.Decoder(list[Any])


class Stored(msgspec.Struct, frozen=True, gc=False):
    """An event as it lies in the log: exactly the bytes that the hash chain covers."""

    position: Position
    tag: str
    subject: bytes
    envelope: bytes
    data: bytes


class Recorded(msgspec.Struct, frozen=True):
    """A decoded event with its place in history."""

    position: Position
    subject: bytes
    envelope: Envelope
    event: types.Event
    stored: Stored


def tag_of(event: types.Event) -> str:
    """The tag under which `event` is stored."""
    return upcasting.tag(type(event).__name__)


def encode(event: types.Event) -> bytes:
    """The data field of `event`."""
    return _encoder.encode(event)


def _decoders() -> dict[str, msgspec.msgpack.Decoder[types.Event]]:
    return {upcasting.tag(name): msgspec.msgpack.Decoder(kind) for name, kind in types.ALL.items()}


_DECODERS = _decoders()


def decode(tag: str, data: bytes) -> types.Event:
    """The current form of a stored event, upcast where it is of an older version.

    Raises UnknownEvent for a type or version this code does not know and for data that does not fit it.
    """
    decoder = _DECODERS.get(tag)
    try:
        if decoder is not None:
            return decoder.decode(data)
        upcaster = upcasting.UPCASTERS.get(tag)
        if upcaster is not None:
            return upcaster(_any.decode(data))
    except (msgspec.DecodeError, ValueError, TypeError, IndexError) as error:
        raise UnknownEvent(f"{tag}: {error}") from None
    raise UnknownEvent(f"{tag} is not a type that this version reads.")


def stored(position: Position, fields: Mapping[bytes, bytes]) -> Stored:
    """The entry at `position`, from the fields of its stream entry. Raises UnknownEvent if one is missing."""
    try:
        return Stored(position, fields[b"t"].decode(), fields[b"s"], fields[b"m"], fields[b"d"])
    except (KeyError, UnicodeDecodeError) as error:
        raise UnknownEvent(f"{position}: not an event of this log ({error}).") from None


def recorded(entry: Stored) -> Recorded:
    """Decode `entry`. Raises UnknownEvent."""
    try:
        envelope = envelopes.decode(entry.envelope)
    except msgspec.DecodeError as error:
        raise UnknownEvent(f"{entry.position}: envelope: {error}") from None
    return Recorded(entry.position, entry.subject, envelope, decode(entry.tag, entry.data), entry)
