"""What is left of a stream in Redis, looked at without asking whether it is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from broker.events import feed, positions
from broker.events.archive.segments import Entry
from broker.events.connection import Redis, text
from broker.events.keys import StreamKeys
from broker.events.positions import Position
from broker.events.scripting import Script

PAGE: Final = 2000
_look: Final = Script("repair_look", allow_oom=True)


class Left(msgspec.Struct, frozen=True):
    """One stream; `now_ms` is the server's clock, `first` None where there are no entries."""

    meta: dict[str, bytes]
    first: Position | None
    last: Position
    added: int
    length: int
    now_ms: int

    @property
    def trimmed(self) -> int:
        """Events that were cut from its beginning."""
        return self.added - self.length

    @property
    def floor(self) -> Position:
        """What lies after it, and was ever there, is still there."""
        if self.first is None:
            return self.last
        return before(self.first) if self.trimmed else positions.start(self.last.stream)

    def said(self, field: str) -> str | None:
        """A field of `meta`."""
        value = self.meta.get(field)
        return None if value is None else text(value)


async def look(redis: Redis, keys: StreamKeys) -> Left:
    """What is left now. Raises LogUnavailable."""
    now, meta, first, last, added, length, _ = await _look(redis, [keys.meta, keys.events], ["0-0", 0])
    return Left(
        {text(name): value for name, value in zip(meta[::2], meta[1::2], strict=True)},
        positions.at(keys.stream, first) if first else None,
        positions.at(keys.stream, last),
        int(added),
        int(length),
        int(now),
    )


async def entries(redis: Redis, keys: StreamKeys, after: Position) -> AsyncIterator[list[Entry]]:
    """The entries after `after`, in pages. Raises LogUnavailable."""
    while True:
        *_, found = await _look(redis, [keys.meta, keys.events], [after.entry_id, PAGE])
        if not found:
            return
        page: list[Any] = [
            feed.entry(positions.at(keys.stream, entry_id), fields) for entry_id, fields in found
        ]
        after = page[-1].position
        yield page


def before(position: Position) -> Position:
    """The place right before `position`."""
    stream, ms, seq = position
    return Position(stream, ms, seq - 1) if seq else Position(stream, max(0, ms - 1), (1 << 64) - 1)


def following(last: Position, now_ms: int) -> Position:
    """The place that the next event after `last` takes."""
    stream, ms, seq = last
    return Position(stream, ms, seq + 1) if now_ms <= ms else Position(stream, now_ms, 0)
