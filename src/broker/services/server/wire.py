"""Bodies of the internal API, as they are read and written; the OpenAPI document is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from broker.web import shapes

MAX_DELIVERIES = 1000
MAX_ERROR = 500

Status = Literal["queued", "delivered", "failed"]
# Of Python's alone, `$` matches before a last line feed too.
_END = r"$(?!\n)"
# What these hold is recorded and shown in plain text, also on terminals.
_PRINTABLE = r"^[^\u0000-\u001f\u007f-\u009f]*" + _END
WorkerId = Annotated[
    str,
    Meta(pattern=r"^[A-Za-z0-9._:-]{1,64}" + _END, description="Who delivered; part of the event's actor."),
]
Count = Annotated[int, Meta(ge=0, le=1_000_000)]
ErrorText = Annotated[
    str,
    Meta(
        max_length=MAX_ERROR,
        pattern=_PRINTABLE,
        description="Recorded in the history in plain text; no control characters.",
    ),
]


class Register(msgspec.Struct, forbid_unknown_fields=True):
    """A message to be queued for a client. With a `message_id` (UUIDv7) it can be repeated."""

    client_id: shapes.ClientName
    sender_number: shapes.SenderNumber
    message_body: shapes.MessageBody
    message_id: shapes.MessageId | None = None
    queued_at: str | None = None
    domain: Annotated[str, Meta(min_length=1, max_length=253, pattern=_PRINTABLE)] | None = None


class Registered(msgspec.Struct, frozen=True):
    """The message is in the log; the same answer each time it is asked for."""

    message_id: str
    client_id: str
    status: Literal["queued"]
    queued_at: str


class Claim(msgspec.Struct, forbid_unknown_fields=True):
    """The worker's claim: entry of the stream and delivery count."""

    entry: str
    count: int


class Delivery(msgspec.Struct, forbid_unknown_fields=True):
    """A message handed over. With a claim the worker records the outcome itself, else the server does."""

    message_id: str
    worker_id: WorkerId
    claim: Claim | None = None
    cycle: Annotated[int, Meta(ge=1)] | None = None
    attempt: Annotated[int, Meta(ge=1)] | None = None


class Deliveries(msgspec.Struct, forbid_unknown_fields=True):
    """Many at once; each has its own result."""

    deliveries: Annotated[list[Delivery], Meta(min_length=1, max_length=MAX_DELIVERIES)]


class Delivered(msgspec.Struct, frozen=True, tag_field="status", tag="delivered"):
    """The recipient has the message; the same answer again."""

    message_id: str
    delivered_at: str


class NotDelivered(msgspec.Struct, frozen=True, tag_field="status", tag="error"):
    """Why one delivery of many was not taken."""

    message_id: str
    error: str
    message: str


class DeliveryResults(msgspec.Struct, frozen=True):
    """One result for each delivery, in order."""

    results: Sequence[Delivered | NotDelivered]


class StatusUpdate(msgspec.Struct, forbid_unknown_fields=True):
    """What became of a message. `attempt_count`: the cycle's attempts, this one included."""

    status: Status
    attempt_count: Count | None = None
    error_message: ErrorText | None = None


class MessageStatusUpdate(StatusUpdate, forbid_unknown_fields=True, kw_only=True):
    """As StatusUpdate, with the message."""

    message_id: shapes.MessageId


class StatusAnswer(msgspec.Struct, frozen=True):
    """The message as it is now."""

    message_id: str
    status: Status
    attempt_count: int
    delivered_at: str | None
    next_retry_at: str | None


class Welcome(msgspec.Struct, frozen=True):
    """What this is."""

    service: str
    version: str
    documentation: str
    health: str
