"""The span of an attempt, from handing the message to its channel to its record in the log."""

from __future__ import annotations

from time import perf_counter

from broker import tracing
from broker.domain.message import End, Park, Retry
from broker.services.delivery.hand import Item


def recorded(item: Item) -> None:
    """The attempt is in the log, with what follows from it."""
    decision, work = item.decision, item.work
    attempted = not isinstance(decision, Park)
    failed = None
    outcome = "parked"
    if isinstance(decision, End):
        outcome = decision.outcome
        failed = decision.reason or outcome if outcome != "delivered" else None
    elif isinstance(decision, Retry):
        outcome, failed = "retry", "another attempt follows"
    elif isinstance(decision, Park):
        failed = decision.reason
    took = perf_counter() - item.started if item.started else 0.0
    tracing.record(
        item.claim.message_id,
        "deliver" if attempted else "park",
        tracing.ago(took),
        key=tracing.attempt(work.open.cycle, work.attempt),
        kind="consumer",
        failed=failed,
        client=work.open.client_id,
        cycle=work.open.cycle,
        attempt=work.attempt,
        channel=item.channel or None,
        outcome=outcome,
        answered_ms=round((item.answered - item.started) * 1000) if item.started else None,
    )
