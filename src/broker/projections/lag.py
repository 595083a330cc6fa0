"""How far read models are behind the log, in events and in seconds."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from broker import clock
from broker.events import feed
from broker.events.connection import Redis
from broker.events.feed import Ahead
from broker.events.keys import StreamKeys
from broker.events.positions import Position
from broker.projections.checkpoints import Checkpoint


class Lag(msgspec.Struct, frozen=True):
    """One projection on one stream: events not applied yet, and the age in seconds of the oldest of them."""

    projection: str
    stream: str
    events: int
    seconds: float
    halted: str | None


async def measure(redis: Redis, keys: StreamKeys, checkpoints: Iterable[Checkpoint]) -> list[Lag]:
    """The lag of each checkpoint on the stream `keys`. Raises LogUnavailable."""
    seen: dict[Position, Ahead] = {}
    found: list[Lag] = []
    for at in checkpoints:
        if at.position not in seen:
            seen[at.position] = await feed.ahead(redis, keys, at.position)
        found.append(_lag(at, seen[at.position]))
    return found


def _lag(at: Checkpoint, ahead: Ahead) -> Lag:
    stream = at.position.stream
    if at.position >= ahead.last:
        return Lag(at.projection, stream, 0, 0.0, at.halted)
    # Counted from the first event ever; never zero while there is something to apply.
    events = max(1, ahead.added - at.events)
    oldest = (ahead.next or ahead.last).ms
    return Lag(at.projection, stream, events, max(0.0, (clock.now_ms() - oldest) / 1000), at.halted)
