"""A message's life: its states, what an attempt's answer leads to, and how events move it. Pure: no I/O."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal

import msgspec

from broker.domain import retry
from broker.domain.retry import RetryPolicy
from broker.errors import Conflict

Outcome = Literal["delivered", "failed", "discarded"]

# -- What came of an attempt ------------------------------------------------------------------------------


class Accepted(msgspec.Struct, frozen=True):
    """The recipient has the message."""

    code: int | None = None


class Refused(msgspec.Struct, frozen=True):
    """The recipient said no: for good, or for now and perhaps not before `retry_after` seconds."""

    reason: str
    code: int | None = None
    permanent: bool = False
    retry_after: float | None = None


class Failed(msgspec.Struct, frozen=True):
    """The recipient could not be asked or did not answer: the recipient's side is away."""

    reason: str


class OwnSideAway(msgspec.Struct, frozen=True):
    """Something of ours is away, so that nothing was learnt about the recipient and no attempt counts."""

    reason: str
    scope: Literal["channel", "client", "message"] = "channel"
    """What else it keeps waiting: everything of the channel, of the client, or this message alone."""


class NeedsPerson(msgspec.Struct, frozen=True):
    """No waiting will help: the ciphertext is damaged or gone, or the route cannot be used."""

    reason: str


class Erased(msgspec.Struct, frozen=True):
    """The client's keys were destroyed on purpose; nobody can ever read the message again."""


Answer = Accepted | Refused | Failed | OwnSideAway | NeedsPerson | Erased

# -- What it leads to -------------------------------------------------------------------------------------


class End(msgspec.Struct, frozen=True):
    """The cycle ends. `attempted`: whether the recipient was asked, which is recorded as an attempt."""

    outcome: Outcome
    attempted: bool = True
    reason: str = ""


class Retry(msgspec.Struct, frozen=True):
    """Another attempt follows in `delay_ms`."""

    delay_ms: int


class Park(msgspec.Struct, frozen=True):
    """Set aside for a person, no attempt counted."""

    reason: str


class Hold(msgspec.Struct, frozen=True):
    """Keep it and try again when our own side is back; nothing is recorded."""

    reason: str


Decision = End | Retry | Park | Hold


def decide(  # noqa: PLR0911 - one return for each answer
    answer: Answer,
    attempt: int,
    policy: RetryPolicy,
    uniform: Callable[[float, float], float] = random.uniform,
) -> Decision:
    """What the answer to attempt number `attempt` (from 1) of a cycle leads to."""
    match answer:
        case Accepted():
            return End("delivered")
        case Refused(permanent=True, reason=reason):
            return End("failed", reason=reason)
        case Refused(reason=reason, retry_after=retry_after):
            return _again(reason, attempt, policy, retry_after, uniform)
        case Failed(reason=reason):
            return _again(reason, attempt, policy, None, uniform)
        case OwnSideAway(reason=reason):
            return Hold(reason)
        case NeedsPerson(reason=reason):
            return Park(reason)
        case Erased():
            # Waiting could not help, and a person could not either: the cycle ends by that decision.
            return End("discarded", attempted=False, reason="the client's keys were erased")


def _again(
    reason: str,
    attempt: int,
    policy: RetryPolicy,
    retry_after: float | None,
    uniform: Callable[[float, float], float],
) -> Decision:
    if retry.exhausted(policy, attempt):
        return End("failed", reason=reason)
    return Retry(retry.delay_ms(policy, attempt, retry_after, uniform))


# -- States -----------------------------------------------------------------------------------------------


class Ready(msgspec.Struct, frozen=True, tag=True):
    """An entry of the log stands for the next attempt."""

    cycle: int
    attempts: int


class Tried(msgspec.Struct, frozen=True, tag=True):
    """An attempt was recorded; what it leads to is the next event."""

    cycle: int
    attempts: int


class Waiting(msgspec.Struct, frozen=True, tag=True):
    """The next attempt is scheduled."""

    cycle: int
    attempts: int


class Parked(msgspec.Struct, frozen=True, tag=True):
    """Set aside for a person; the cycle is open."""

    cycle: int
    attempts: int


class Ended(msgspec.Struct, frozen=True, tag=True):
    """The cycle has its outcome."""

    cycle: int
    attempts: int
    outcome: Outcome


Open = Ready | Tried | Waiting | Parked
State = Open | Ended
_ENDS: dict[str, Outcome] = {"Delivered": "delivered", "Failed": "failed", "MessageDiscarded": "discarded"}


def evolve(state: State | None, event: str, cycle: int = 1, attempt: int = 0) -> State:
    """The state after an event of this type name with this cycle and attempt number; None: not submitted yet.

    Raises Conflict for an event that the state does not allow.
    """
    if state is None:
        if event == "MessageSubmitted":
            return Ready(1, 0)
    elif isinstance(state, Ended):
        if event == "ResendRequested" and cycle == state.cycle + 1:
            return Ready(cycle, 0)
    elif cycle == state.cycle and (following := _within_cycle(state, event, attempt)) is not None:
        return following
    raise Conflict(f"{event} of cycle {cycle}, attempt {attempt}, cannot follow {state}.")


def _within_cycle(state: Open, event: str, attempt: int) -> State | None:  # noqa: PLR0911 - a table
    cycle, made = state.cycle, state.attempts
    if event == "DeliveryAttempted":
        allowed = not isinstance(state, Tried) and attempt == made + 1
        return Tried(cycle, attempt) if allowed else None
    if event == "DeliveryDue":
        allowed = isinstance(state, Waiting | Parked) and attempt == made + 1
        return Ready(cycle, made) if allowed else None
    if attempt != made:
        return None
    if (outcome := _ENDS.get(event)) is not None:
        return Ended(cycle, made, outcome)
    if event == "RetryScheduled":
        return Waiting(cycle, made) if isinstance(state, Tried) else None
    if event == "MessageParked":
        return None if isinstance(state, Parked) else Parked(cycle, made)
    return None
