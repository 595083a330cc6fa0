"""What a projection is: a pure fold of events into rows to write."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar, Protocol

import msgspec

from broker.domain import ids
from broker.errors import UnknownEvent
from broker.events import codec, positions
from broker.events import envelope as envelopes
from broker.events.codec import Stored
from broker.events.envelope import Envelope
from broker.events.feed import Malformed
from broker.events.positions import Position
from broker.events.types import Event
from broker.projections.sql import Write


class Item(msgspec.Struct, frozen=True, gc=False):
    """One event, decoded once for all projections. `event` is the error where this version cannot read it."""

    position: Position
    subject: bytes
    envelope: Envelope
    event: Event | UnknownEvent
    stored: Stored


Entry = Item | Malformed


class Folded(msgspec.Struct, frozen=True):
    """What a fold of a batch leaves: rows to write and the state that the next fold starts from."""

    writes: list[Write]
    state: bytes | None = None


class Fold(Protocol):
    """Takes the events of one batch of one stream, in order."""

    def apply(self, item: Item) -> None:
        """Take `item` in. Raises UnknownEvent, or any error, when it cannot be folded."""
        ...

    def finish(self) -> Folded:
        """The batch's rows and state."""
        ...


class Projection(Protocol):
    """A read model. Its tables are its own; no other projection writes or references them."""

    name: ClassVar[str]
    tables: ClassVar[tuple[str, ...]]

    def wants(self, stream: str) -> bool:
        """Whether `stream` feeds this read model."""
        ...

    def begin(self, stream: str, state: bytes | None) -> Fold:
        """Start folding a batch of `stream`, from the state that its checkpoint holds."""
        ...


def is_partition(stream: str) -> bool:
    """Whether `stream` is a partition of message events."""
    return stream.isdigit()


def is_control(stream: str) -> bool:
    """Whether `stream` is the control stream."""
    return stream == positions.CONTROL


def decode(entry: Stored | Malformed) -> Entry:
    """The one decoding of a stream entry. Never raises: what cannot be read says so itself."""
    if isinstance(entry, Malformed):
        return entry
    try:
        envelope = envelopes.decode(entry.envelope)
    except msgspec.DecodeError as error:
        return Malformed(entry.position, UnknownEvent(f"{entry.position}: envelope: {error}"))
    event: Event | UnknownEvent
    try:
        event = codec.decode(entry.tag, entry.data)
    except UnknownEvent as error:
        event = error
    return Item(entry.position, entry.subject, envelope, event, entry)


@lru_cache(maxsize=16_384)
def message_id(subject: bytes) -> str:
    """The literal of a message's id; remembered: every event of a message has it in several rows."""
    return f"'{ids.text(subject)}'"


class Poison(msgspec.Struct, frozen=True):
    """The event that a projection cannot fold, and why."""

    position: Position
    reason: str


def fold(
    projection: Projection, stream: str, state: bytes | None, batch: Sequence[Entry]
) -> tuple[Folded, int, Poison | None]:
    """Fold as much of `batch` as can be folded: rows and state, how many events went in, what stopped it."""
    current = projection.begin(stream, state)
    apply = current.apply
    index = 0
    try:
        for entry in batch:
            if isinstance(entry, Malformed):
                raise entry.error
            apply(entry)
            index += 1
    except Exception as error:  # noqa: BLE001  whatever a fold raises is about this event; it is recorded
        # The event may have been half taken in: fold what came before it afresh.
        good = projection.begin(stream, state)
        for entry in batch[:index]:
            assert isinstance(entry, Item)  # noqa: S101
            good.apply(entry)
        reason = str(error) if isinstance(error, UnknownEvent) else f"{type(error).__name__}: {error}"
        return good.finish(), index, Poison(batch[index].position, reason[:400])
    return current.finish(), index, None


def expect(item: Item) -> Event:
    """The event of `item`. Raises UnknownEvent where this version cannot read it."""
    if isinstance(item.event, UnknownEvent):
        raise item.event
    return item.event


def clip(text: str | None, limit: int = 500) -> str | None:
    """At most `limit` characters, so that a long reason never stops a projection."""
    return text if text is None or len(text) <= limit else text[: limit - 1] + "…"
