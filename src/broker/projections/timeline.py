"""What happened to one message, step by step: its events as people follow them, out of the audit log."""

from __future__ import annotations

import msgspec

from broker.domain import ids
from broker.errors import UnknownEvent
from broker.events import codec, types
from broker.events import envelope as envelopes
from broker.events.codec import Stored
from broker.projections import chained
from broker.projections.store import Store


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """One event of a message; what does not apply to its type is left out.

    `at`, `next_attempt_at`: milliseconds since the epoch. `actor`: who did it, as `client:…`, `worker:…`,
    `user:…`. `certificate`: SHA-256 of the certificate that a message was submitted with.
    """

    event: str
    position: str
    at: int
    actor: str
    correlation_id: str | None = None
    causation_id: str | None = None
    cycle: int | None = None
    attempt: int | None = None
    channel: str | None = None
    succeeded: bool | None = None
    latency_ms: int | None = None
    code: int | None = None
    error: str | None = None
    reason: str | None = None
    next_attempt_at: int | None = None
    certificate: str | None = None
    domain: str | None = None


_SHOWN = ("cycle", "attempt", "channel", "succeeded", "latency_ms", "code", "error", "reason", "domain")


async def of_message(store: Store, message_id: bytes) -> list[Step]:
    """Every step of the message in the order of the log, of all cycles. Raises StoreUnavailable."""
    return [step(each.stored) for each in await chained.of_subject(store, ids.text(message_id))]


def step(stored: Stored) -> Step:
    """A stored message event as a step; of an event that this version cannot read, what its envelope says."""
    name = stored.tag.partition(".")[0]
    envelope = envelopes.decode(stored.envelope)
    said = {
        "event": name,
        "position": str(stored.position),
        "at": envelope.at,
        "actor": envelope.actor,
        "correlation_id": envelopes.conversation(envelope, stored.subject),
        "causation_id": envelope.causation,
    }
    try:
        event = codec.decode(stored.tag, stored.data)
    except UnknownEvent:
        return msgspec.convert(said, Step)
    said |= {field: getattr(event, field) for field in _SHOWN if hasattr(event, field)}
    if isinstance(event, types.MessageSubmitted):
        said |= {"cycle": 1, "certificate": None if event.certificate is None else event.certificate.hex()}
    elif isinstance(event, types.RetryScheduled):
        # As the log counts: by the time of its entry.
        said["next_attempt_at"] = stored.position.ms + event.delay_ms
    return msgspec.convert(said, Step)
