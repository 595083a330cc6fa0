"""Where an event stands: its stream and the id it has there. Stream ids alone collide between partitions."""

from __future__ import annotations

from typing import Final, NamedTuple

from broker.errors import ValidationError

CONTROL: Final = "control"
ACCESS: Final = "access"

DIGITS: Final = 20
"""Of the numbers of an id, at most: 64 bits."""


class Position(NamedTuple):
    """`stream` is a partition's number in decimal, `control` or `access`; `ms-seq` is the stream id."""

    stream: str
    ms: int
    seq: int

    def __str__(self) -> str:
        return f"{self.stream}:{self.ms}-{self.seq}"

    @property
    def entry_id(self) -> str:
        """The id within the stream, as Redis writes it."""
        return f"{self.ms}-{self.seq}"


def at(stream: str, entry_id: bytes | str) -> Position:
    """The position of the entry `ms-seq` in `stream`."""
    text = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    ms, _, seq = text.partition("-")
    return Position(stream, int(ms), int(seq or 0))


def start(stream: str) -> Position:
    """Before the first event of `stream`."""
    return Position(stream, 0, 0)


def parse(text: str, field: str = "position") -> Position:
    """The inverse of `str(position)`. Raises ValidationError."""
    stream, _, entry = text.partition(":")
    ms, _, seq = entry.partition("-")
    numbers = (each.isascii() and each.isdigit() and len(each) <= DIGITS for each in (ms, seq))
    if not (stream and all(numbers)):
        raise ValidationError(field, "must be an event id such as 0:1795311781303-0")
    return Position(stream, int(ms), int(seq))
