"""Messages out of their history: which are open and how far they are, what came of others, which keys count.

What lies in Redis beside a partition's events follows from the events. Only two things do not: crashes that
were counted, which start anew, and who had a message in hand, which nobody has after a repair.
"""

from __future__ import annotations

from typing import Final

import msgspec

from broker.domain import message
from broker.domain.message import State
from broker.errors import Conflict
from broker.events import codec, envelope, types
from broker.events.archive.segments import Entry
from broker.events.codec import Stored
from broker.events.open_messages import FinishedMessage, Outcome, Phase, outcome_record
from broker.events.positions import Position

_LETTERS: Final[dict[Phase, str]] = {"ready": "r", "due": "d", "parked": "p"}
_OUTCOMES: Final[dict[type[types.Event], Outcome]] = {
    types.Delivered: "delivered",
    types.Failed: "failed",
    types.MessageDiscarded: "discarded",
}
KNOWN_MS: Final = 48 * 3_600_000
"""So long an outcome is known here at least, however soon Redis may forget it: what a rolled-back Redis took
in meanwhile must not begin again what had ended."""

_pack = msgspec.msgpack.Encoder().encode


class Open:
    """A message without an outcome, while its events are read."""

    __slots__ = (
        "attempts",
        "body",
        "cause",
        "client",
        "correlation",
        "cycle",
        "due",
        "phase",
        "position",
        "tried",
    )

    def __init__(self, entry: Stored, client: str, cycle: int) -> None:
        self.position = entry.position
        self.body = entry.tag.encode() + b"|" + entry.data
        self.client = client
        self.correlation = _pack(envelope.decode(entry.envelope).correlation)
        self.cycle = cycle
        self.attempts = 0
        self.phase: Phase = "ready"
        self.due = 0
        self.cause: Position | None = None
        self.tried: tuple[Position, bool] | None = None
        """The attempt whose consequence is not known (yet), and whether it succeeded."""

    @property
    def stands(self) -> Position:
        """The entry that stands for the next attempt, of a message that is ready."""
        return self.cause or self.position

    def state(self) -> State:
        """As the rules of a message's life see it."""
        if self.tried is not None:
            return message.Tried(self.cycle, self.attempts)
        if self.phase == "ready":
            return message.Ready(self.cycle, self.attempts)
        if self.phase == "due":
            return message.Waiting(self.cycle, self.attempts)
        return message.Parked(self.cycle, self.attempts)

    def record(self) -> bytes:
        """As `_prelude.lua` writes it."""
        cause = "" if self.cause is None else self.cause.entry_id
        head = (
            f"{self.position.entry_id}|{self.cycle}|{self.attempts}|{_LETTERS[self.phase]}|{self.due}|0|"
            f"{cause}|{self.client}|"
        )
        return head.encode() + self.correlation


class Ended(msgspec.Struct, frozen=True):
    """What came of a message; it is to be known until `until_ms`, by the log's clock."""

    message: FinishedMessage
    until_ms: int

    def record(self) -> bytes:
        """As `settle.lua` keeps it."""
        one = self.message
        return outcome_record(one.outcome, one.cycle, one.attempts, one.at_ms, one.client_id).encode()


class Used(msgspec.Struct, frozen=True):
    """An idempotency key's record; `until_ms` by the log's clock."""

    record: str
    until_ms: int


class MessageFold:
    """One partition. `now_ms` is the log's clock; keys and outcomes are to be kept for as long as is said."""

    def __init__(self, now_ms: int, *, idempotency_ms: int, outcomes_kept_ms: int) -> None:
        self._now = now_ms
        self._idempotency_ms = idempotency_ms
        self._outcomes_kept_ms = outcomes_kept_ms
        self.open: dict[bytes, Open] = {}
        self._done: dict[bytes, Ended] = {}
        self._used: dict[bytes, Used] = {}

    # -- What it comes to ---------------------------------------------------------------------------------

    def done(self) -> dict[bytes, Ended]:
        """The outcomes that are to be answered without the database."""
        return {name: one for name, one in self._done.items() if one.until_ms > self._now}

    def used(self) -> dict[bytes, Used]:
        """The idempotency keys that still count, by their hash."""
        return {key: one for key, one in self._used.items() if one.until_ms > self._now}

    def knows(self, message_id: bytes) -> bool:
        """Whether the message is open, or ended of late."""
        return message_id in self.open or message_id in self._done

    # -- Events -------------------------------------------------------------------------------------------

    def allows(self, entry: Stored) -> bool:
        """Whether this event can follow: one that a rolled-back Redis took in may deny what was known before.

        Raises UnknownEvent.
        """
        event = codec.decode(entry.tag, entry.data)
        found = self.open.get(entry.subject)
        done = self._done.get(entry.subject)
        state: State | None = None if found is None else found.state()
        if found is None and done is not None:
            state = message.Ended(done.message.cycle, done.message.attempts, done.message.outcome)
        if state is None and isinstance(event, types.ResendRequested):
            return True
        cycle, attempt = getattr(event, "cycle", 1), getattr(event, "attempt", 0)
        try:
            message.evolve(state, type(event).__name__, cycle, attempt)
        except Conflict:
            return False
        return True

    def apply(self, entry: Entry) -> None:
        """Take in the next event. Raises UnknownEvent."""
        if not isinstance(entry, Stored):
            return
        event = codec.decode(entry.tag, entry.data)
        if isinstance(event, types.MessageSubmitted):
            self.open[entry.subject] = Open(entry, event.client_id, 1)
            self._remember(entry, event)
            return
        if isinstance(event, types.ResendRequested):
            self.open[entry.subject] = Open(entry, event.client_id, event.cycle)
            self._done.pop(entry.subject, None)
            return
        found = self.open.get(entry.subject)
        if found is not None and getattr(event, "cycle", None) == found.cycle:
            self._moved(entry, event, found)

    def _moved(self, entry: Stored, event: types.Event, found: Open) -> None:
        if isinstance(event, types.DeliveryAttempted):
            found.attempts = event.attempt
            found.tried = entry.position, event.succeeded
            return
        found.tried = None
        match event:
            case types.RetryScheduled():
                found.phase, found.due = "due", entry.position.ms + event.delay_ms
            case types.DeliveryDue():
                found.phase, found.due = "ready", 0
            case types.MessageParked():
                found.phase = "parked"
            case _:
                self._ended(entry, event, found)
                return
        found.cause = entry.position

    def _ended(self, entry: Stored, event: types.Event, found: Open) -> None:
        outcome = _OUTCOMES.get(type(event))
        if outcome is None:
            return
        del self.open[entry.subject]
        ended_ms = entry.position.ms
        if ended_ms + max(self._outcomes_kept_ms, KNOWN_MS) <= self._now:
            return
        attempts, at_ms = getattr(event, "attempt", found.attempts), envelope.decode(entry.envelope).at
        ended = FinishedMessage(entry.subject, outcome, found.cycle, attempts, at_ms, found.client)
        self._done[entry.subject] = Ended(ended, ended_ms + self._outcomes_kept_ms)

    def _remember(self, entry: Stored, event: types.MessageSubmitted) -> None:
        if event.idempotency is None or event.request_hash is None:
            return
        until = entry.position.ms + self._idempotency_ms
        if until > self._now:
            queued = envelope.decode(entry.envelope).at
            record = f"{event.request_hash.hex()}|{entry.subject.hex()}|{entry.position.entry_id}|{queued}"
            self._used[event.idempotency] = Used(record, until)
