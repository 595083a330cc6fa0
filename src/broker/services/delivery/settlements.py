"""From a decision to what is written for it. Pure."""

from __future__ import annotations

from typing import Literal

from broker import clock
from broker.domain import message
from broker.domain.message import Accepted, Answer, Decision, End, Failed, Hold, Park, Refused, Retry
from broker.events import envelope, types
from broker.events.claims import Claim, Settlement, Task
from broker.events.types import DeliveryAttempted

MAX_ERROR = 500
Kind = Literal["done", "retry", "park"]


def settlement(
    task: Task,
    claim: Claim,
    decision: Decision,
    answer: Answer | None,
    *,
    channel: str,
    latency_ms: int,
    actor: str,
) -> Settlement:
    """The settlement of an attempt that ended as `decision`, which is not Hold."""
    opened = task.open
    client, cycle, attempt = opened.client_id, opened.cycle, opened.attempts + 1
    now = clock.now_ms()
    meta = envelope.splice(now, actor, opened.correlation, f"{claim.stream}:{claim.entry}")
    made = opened.attempts
    attempted: DeliveryAttempted | None = None
    event: types.Event
    kind: Kind = "done"
    outcome: message.Outcome | None = None
    delay_ms = 0
    if isinstance(decision, Retry) or (isinstance(decision, End) and decision.attempted):
        code, error = _said(answer)
        attempted = DeliveryAttempted(
            client, cycle, attempt, channel, isinstance(answer, Accepted), latency_ms, code, error
        )
        made = attempt
    match decision:
        case End(outcome="delivered"):
            event, outcome = types.Delivered(client, cycle, made), "delivered"
        case End(outcome="failed", reason=reason):
            event, outcome = types.Failed(client, cycle, made, reason[:MAX_ERROR]), "failed"
        case End(reason=reason):
            event, outcome = types.MessageDiscarded(client, cycle, made, reason[:MAX_ERROR]), "discarded"
        case Retry(delay_ms=delay_ms):
            event, kind = types.RetryScheduled(client, cycle, made, delay_ms), "retry"
        case Park(reason=reason):
            event, kind = types.MessageParked(client, cycle, made, reason[:MAX_ERROR]), "park"
        case Hold():
            raise ValueError("What is held is not written.")
    return Settlement(
        kind, opened.message_id, client, cycle, attempt, meta, claim, attempted, event, outcome, now, delay_ms
    )


def _said(answer: Answer | None) -> tuple[int | None, str | None]:
    match answer:
        case Accepted(code=code):
            return code, None
        case Refused(reason=reason, code=code):
            return code, reason[:MAX_ERROR]
        case Failed(reason=reason):
            return None, reason[:MAX_ERROR]
    return None, None
