"""Answers of the read side; the OpenAPI document is made of them. Times are RFC 3339 in UTC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from broker.events.exported import ExportedLine
from broker.projections.overview import Delivery, Period

Status = Literal["queued", "delivered", "failed"]


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A message in a list. The body is never shown here, the number with its middle masked."""

    message_id: str
    client_id: str
    sender_number: Annotated[str, Meta(description="Masked; or why it cannot be read, in brackets.")]
    message_body: Annotated[str, Meta(description="`[encrypted]`, unless an admin decrypted this message.")]
    status: Status
    parked: bool
    reason: str | None
    cycle: int
    attempt_count: Annotated[int, Meta(description="Made in the current cycle.")]
    queued_at: str
    delivered_at: str | None
    failed_at: str | None
    next_attempt_at: str | None
    last_error: str | None
    last_code: int | None
    domain: str | None
    certificate: Annotated[str, Meta(description="SHA-256 of the certificate it came with.")] | None
    correlation_id: str | None


class Messages(msgspec.Struct, frozen=True):
    """A page of messages, the newest first. `next` leads on from its last one, whatever arrives meanwhile."""

    messages: Sequence[Message]
    total: Annotated[int, Meta(description="Counted up to 10,000.")]
    total_exact: Annotated[bool, Meta(description="False where there are more than were counted.")]
    page: int
    per_page: int
    pages: Annotated[int, Meta(description="How far page numbers go.")]
    next: Annotated[str, Meta(description="As `cursor`, gives the next page.")] | None


class Step(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One event of a message; what does not apply to it is left out."""

    event: str
    position: str
    at: str
    actor: Annotated[str, Meta(description="Who: `client:…`, `worker:…`, `user:…`, `system`.")]
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
    next_attempt_at: str | None = None
    certificate: str | None = None
    domain: str | None = None


class MessageDetail(Message, frozen=True, kw_only=True):
    """One message with everything that happened to it, the oldest first."""

    timeline: Sequence[Step]


class ByStatus(msgspec.Struct, frozen=True):
    """`queued`: open now. `delivered` and `failed`: outcomes in the period, whenever the message came."""

    queued: int
    delivered: int
    failed: int


class ProjectionLag(msgspec.Struct, frozen=True):
    """How far a read model is behind on one stream: events, and the age of the oldest of them."""

    projection: str
    stream: str
    events: int
    seconds: float
    halted: Annotated[str, Meta(description="Why it stands still.")] | None


class Stats(msgspec.Struct, frozen=True):
    """The system's figures; `since` is the first hour counted, `delivery` in milliseconds from submit."""

    period: Period
    since: str
    total_messages: int
    messages_by_status: ByStatus
    total_clients: int
    active_clients: int
    messages_last_24h: int
    open_messages: int
    overdue_retries: int
    delivery: Delivery
    projections: Sequence[ProjectionLag]


class AuditEvents(msgspec.Struct, frozen=True):
    """Events, the newest first. A page may be short and still have a `next`: more is left to look through."""

    events: Sequence[ExportedLine]
    next: Annotated[str, Meta(description="As `cursor`, leads on.")] | None
