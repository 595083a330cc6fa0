"""Histories of events: written by hand, made at random, put into a log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from broker.domain import ids
from broker.events import codec, envelope, types
from broker.events.codec import Stored
from broker.events.connection import Redis
from broker.events.keys import StreamKeys
from broker.events.positions import Position

START_MS = 1_795_311_781_000


class Fact(msgspec.Struct, frozen=True):
    """An event before it has a position."""

    subject: bytes
    event: types.Event
    at: int = START_MS
    actor: str = "worker:w1"
    correlation_id: str | None = "c0ffee" + "0" * 26
    causation: str | None = None

    def fields(self) -> dict[bytes, bytes]:
        """The four fields of its stream entry."""
        return {
            b"t": codec.tag_of(self.event).encode(),
            b"s": self.subject,
            b"m": envelope.encode(self.at, self.actor, self.correlation_id, self.causation),
            b"d": codec.encode(self.event),
        }

    def stored(self, position: Position) -> Stored:
        """As it lies in the log at `position`."""
        return codec.stored(position, self.fields())


def submitted(partition: int = 0, client: str = "demo", at: int = START_MS, **more: Any) -> Fact:
    """A message accepted."""
    event = types.MessageSubmitted(client, b"\x00sealed\xff'\\" + bytes(range(40)), b"h" * 32, **more)
    return Fact(ids.new(partition), event, at, f"client:{client}")


def attempted(of: Fact, attempt: int = 1, *, ok: bool = True, cycle: int = 1, **more: Any) -> Fact:
    """An attempt of the message `of`."""
    client = of.event.client_id
    event = types.DeliveryAttempted(client, cycle, attempt, "simulated", ok, 12, **more)
    return Fact(of.subject, event, of.at + 10 * attempt)


def delivered(of: Fact, attempt: int = 1, cycle: int = 1) -> Fact:
    """The message `of` reached its recipient."""
    return Fact(of.subject, types.Delivered(of.event.client_id, cycle, attempt), of.at + 10 * attempt)


def happy(count: int, partition: int = 0, client: str = "demo") -> list[Fact]:
    """Messages submitted, tried once and delivered, interleaved as a worker leaves them."""
    facts: list[Fact] = []
    for _ in range(count):
        one = submitted(partition, client)
        facts += [one, attempted(one), delivered(one)]
    return facts


async def append(redis: Redis, keys: StreamKeys, facts: Sequence[Fact]) -> list[Position]:
    """Put `facts` into the stream; their positions."""
    found: list[Position] = []
    for start in range(0, len(facts), 1000):
        pipe = redis.pipeline(transaction=False)
        for fact in facts[start : start + 1000]:
            pipe.xadd(keys.events, fact.fields())
        for entry_id in await pipe.execute():
            ms, _, seq = entry_id.decode().partition("-")
            found.append(Position(keys.stream, int(ms), int(seq)))
    return found
