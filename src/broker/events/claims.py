"""What a worker holds of the log: a claim, the attempt it stands for, and how that ended."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from broker.domain import ids
from broker.errors import UnknownEvent
from broker.events import codec, types
from broker.events.keys import PartitionKeys
from broker.events.open_messages import OpenMessage, Outcome, outcome_record
from broker.events.positions import Position, at


class Claim(msgspec.Struct, frozen=True):
    """A pending entry that this consumer holds. `count` is its delivery count: the fence."""

    stream: str
    entry: str
    """The entry's id in its stream."""
    message_id: bytes
    event: types.Event | None
    """None for an entry that stands for no attempt; such entries are only acknowledged."""
    count: int
    crashes: int = 0

    @property
    def position(self) -> Position:
        """Of the entry."""
        return at(self.stream, self.entry)

    @property
    def cycle_and_attempt(self) -> tuple[int, int]:
        """What the entry stands for: attempt numbers count from 1 within a cycle."""
        if isinstance(self.event, types.DeliveryDue):
            return self.event.cycle, self.event.attempt
        return (self.event.cycle if isinstance(self.event, types.ResendRequested) else 1), 1


class Task(msgspec.Struct, frozen=True):
    """A claim that `open` bears out: one attempt to make."""

    claim: Claim
    open: OpenMessage
    sealed: bytes | None
    """The ciphertext; None where it is nowhere to be found any more."""

    @property
    def attempt(self) -> int:
        """The number of this attempt in its cycle, from 1."""
        return self.open.attempts + 1


class Settlement(msgspec.Struct, frozen=True):
    """How an attempt ended. `attempted` is None where nothing was tried."""

    kind: Literal["done", "retry", "park", "drop"]
    message_id: bytes
    client_id: str
    cycle: int
    attempt: int
    envelope: bytes = b""
    claim: Claim | None = None
    """None for a direct call, which is fenced by `open` alone; `attempt` then counts those made so far."""
    attempted: types.DeliveryAttempted | None = None
    event: types.Event | None = None
    outcome: Outcome | None = None
    at_ms: int = 0
    delay_ms: int = 0


def packed_bytes(value: bytes) -> msgspec.Raw:
    """Bytes as msgpack's string type: Redis' own msgpack reads no binaries."""
    size = len(value)
    if size < 32:
        return msgspec.Raw((0xA0 | size).to_bytes(1, "big") + value)
    if size < 256:
        return msgspec.Raw(b"\xd9" + size.to_bytes(1, "big") + value)
    if size < 65536:
        return msgspec.Raw(b"\xda" + size.to_bytes(2, "big") + value)
    return msgspec.Raw(b"\xdb" + size.to_bytes(4, "big") + value)


def packed_settlement(item: Settlement, partition: PartitionKeys, done_keys: list[str]) -> tuple[Any, ...]:
    """The item as `settle.lua` takes it; `done_keys` are the outcome hashes of its call, in order."""
    claim, index, record = item.claim, 0, ""
    if item.kind == "done":
        if item.outcome is None:
            raise UnknownEvent("A cycle ends with an outcome.")
        index = 1 + done_keys.index(partition.done(ids.created_ms(item.message_id)))
        # A claim names the attempt it stands for, a direct call those made before it.
        made = item.attempt - 1 if claim is not None else item.attempt
        attempts = made if item.attempted is None else made + 1
        record = outcome_record(item.outcome, item.cycle, attempts, item.at_ms, item.client_id)
    return (
        claim.entry if claim else "",
        claim.count if claim else 0,
        packed_bytes(item.message_id),
        item.cycle,
        item.attempt,
        item.kind,
        item.delay_ms,
        index,
        record,
        packed_bytes(item.envelope),
        packed_bytes(codec.encode(item.attempted)) if item.attempted else "",
        codec.tag_of(item.event) if item.event else "",
        packed_bytes(codec.encode(item.event)) if item.event else "",
    )
