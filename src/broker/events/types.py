"""Every event there is.

Frozen structs encoded as msgpack arrays, in the order of their fields. A change may only append fields with
defaults (older readers pass over them); anything else is a new version with an upcaster (`upcasting`).
`WITHHELD` names the fields that an export replaces by a commitment.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec


class Event(msgspec.Struct, frozen=True, array_like=True):
    """Base of all events."""


class MessageEvent(Event, frozen=True, array_like=True):
    """A fact about one message; its subject is the message id."""

    client_id: str


# -- Messages ---------------------------------------------------------------------------------------------


class MessageSubmitted(MessageEvent, frozen=True, array_like=True):
    """A producer's message was accepted. Opens cycle 1."""

    sealed: bytes
    """Number, body and metadata under the client's key (`sealing`)."""
    number_hash: bytes
    """HMAC-SHA-256 of the sender number, 32 bytes."""
    certificate: bytes | None = None
    """SHA-256 fingerprint of the certificate it came with, 32 bytes."""
    idempotency: bytes | None = None
    """Keyed hash of client and idempotency key, so that repair can restore the record."""
    request_hash: bytes | None = None
    """Keyed hash of the canonical plain request."""
    domain: str | None = None


class DeliveryAttempted(MessageEvent, frozen=True, array_like=True):
    """A worker handed the message to its channel and got an answer, or none in time."""

    cycle: int
    attempt: int
    channel: str
    succeeded: bool
    latency_ms: int
    code: int | None = None
    error: str | None = None


class RetryScheduled(MessageEvent, frozen=True, array_like=True):
    """The attempt failed and another follows, `delay_ms` after this event by the log's clock."""

    cycle: int
    attempt: int
    delay_ms: int


class DeliveryDue(MessageEvent, frozen=True, array_like=True):
    """The time of attempt number `attempt` has come."""

    cycle: int
    attempt: int


class Delivered(MessageEvent, frozen=True, array_like=True):
    """Ends the cycle: the recipient has the message."""

    cycle: int
    attempt: int


class Failed(MessageEvent, frozen=True, array_like=True):
    """Ends the cycle: the recipient refused it for good, or the attempts ran out."""

    cycle: int
    attempt: int
    reason: str


class MessageParked(MessageEvent, frozen=True, array_like=True):
    """Set aside for a person to look at; the cycle stays open."""

    cycle: int
    attempt: int
    reason: str


class ResendRequested(MessageEvent, frozen=True, array_like=True):
    """Opens the next cycle. Carries the ciphertext, because the stream may have been trimmed."""

    cycle: int
    sealed: bytes
    reason: str | None = None


class MessageDiscarded(MessageEvent, frozen=True, array_like=True):
    """Ends the cycle: a person decided that it will not be delivered."""

    cycle: int
    attempt: int
    reason: str


# -- Control: clients, certificates, users, keys ----------------------------------------------------------


class ClientRegistered(Event, frozen=True, array_like=True):
    """A producer may exist. Its keys are made with it and lie outside the history."""

    client_id: str
    domain: str | None = None


class ClientRouteChanged(Event, frozen=True, array_like=True):
    """Where the client's messages go from now on."""

    client_id: str
    channel: str
    target: str | None = None
    sealed_secret: bytes | None = None
    """The webhook's signing secret under the client's key."""


class ClientErased(Event, frozen=True, array_like=True):
    """The client's keys were destroyed; what they sealed is unreadable for ever."""

    client_id: str
    reason: str


class CertIssued(Event, frozen=True, array_like=True):
    """Our CA signed a certificate."""

    fingerprint: str
    serial: str
    client_id: str
    role: str
    not_before_ms: int
    not_after_ms: int


class CertRenewed(Event, frozen=True, array_like=True):
    """A certificate was issued in place of another, which stays good until `overlap_until_ms`."""

    fingerprint: str
    serial: str
    client_id: str
    role: str
    not_before_ms: int
    not_after_ms: int
    replaces: str
    overlap_until_ms: int


class CertRevoked(Event, frozen=True, array_like=True):
    """The certificate is refused from now on. `reason` is one of RFC 5280, 5.3.1, or words."""

    fingerprint: str
    serial: str
    client_id: str
    reason: str


class UserCreated(Event, frozen=True, array_like=True):
    """A person may sign in."""

    user_id: str
    email: str
    role: str
    password_hash: str
    client_ids: list[str] = []


class UserRoleChanged(Event, frozen=True, array_like=True):
    """The user's role is another."""

    user_id: str
    role: str


class UserClientsChanged(Event, frozen=True, array_like=True):
    """The clients whose messages the user sees are others."""

    user_id: str
    client_ids: list[str]


class UserDisabled(Event, frozen=True, array_like=True):
    """The user may not sign in, and every session of theirs ended."""

    user_id: str
    reason: str | None = None


class PasswordChanged(Event, frozen=True, array_like=True):
    """The user has another password; every other session of theirs ended."""

    user_id: str
    password_hash: str


class KeyRotated(Event, frozen=True, array_like=True):
    """A key became the active one of its kind; or a step of that, which `state` names.

    `added`: every process can load it, none uses it yet. `wrapped`: it wraps the keys of `client_id` now.
    `removed`: it is forgotten, and so is what only it could open.
    """

    kind: Literal["master", "client", "signing"]
    key_id: str
    client_id: str | None = None
    state: Literal["active", "added", "wrapped", "removed"] = "active"


class ReplayStarted(Event, frozen=True, array_like=True):
    """A rebuild of a read model began."""

    projection: str
    version: int


class ReplayFinished(Event, frozen=True, array_like=True):
    """A rebuild ended, by switching or without."""

    projection: str
    version: int
    outcome: Literal["switched", "cancelled", "failed"]
    events: int


class DigestSigned(Event, frozen=True, array_like=True):
    """All streams were vouched for, up to where they stood: a digest, chained to the one before."""

    number: int
    body: str
    """What was signed: JSON (`digests.Digest`)."""
    signature: bytes
    """Ed25519, 64 bytes."""


# -- Access: frequent facts about people ------------------------------------------------------------------


class LoginSucceeded(Event, frozen=True, array_like=True):
    """A user signed in."""

    user_id: str
    address: str | None = None


class LoginFailed(Event, frozen=True, array_like=True):
    """Attempts to sign in failed; aggregated where an attacker sets the rate."""

    account_hash: bytes
    address: str | None = None
    count: int = 1


class LoggedOut(Event, frozen=True, array_like=True):
    """A user ended a session."""

    user_id: str


class BodyRead(Event, frozen=True, array_like=True):
    """Somebody was shown the plain text of a message; durable before it is shown."""

    message_id: str
    client_id: str
    reason: str | None = None


class HistoryExported(Event, frozen=True, array_like=True):
    """Somebody exported events; recorded before the first is shown. `events`: looked through for it."""

    format: str
    filters: dict[str, str]
    events: int


MESSAGE_EVENTS: Final[tuple[type[Event], ...]] = (
    MessageSubmitted,
    DeliveryAttempted,
    RetryScheduled,
    DeliveryDue,
    Delivered,
    Failed,
    MessageParked,
    ResendRequested,
    MessageDiscarded,
)
CONTROL_EVENTS: Final[tuple[type[Event], ...]] = (
    ClientRegistered,
    ClientRouteChanged,
    ClientErased,
    CertIssued,
    CertRenewed,
    CertRevoked,
    UserCreated,
    UserRoleChanged,
    UserClientsChanged,
    UserDisabled,
    PasswordChanged,
    KeyRotated,
    ReplayStarted,
    ReplayFinished,
    DigestSigned,
)
ACCESS_EVENTS: Final[tuple[type[Event], ...]] = (
    LoginSucceeded,
    LoginFailed,
    LoggedOut,
    BodyRead,
    HistoryExported,
)
ALL: Final[dict[str, type[Event]]] = {
    kind.__name__: kind for kind in (*MESSAGE_EVENTS, *CONTROL_EVENTS, *ACCESS_EVENTS)
}
"""Every current event type by its name."""

WITHHELD: Final[frozenset[tuple[str, str]]] = frozenset(
    {
        ("MessageSubmitted", "sealed"),
        ("MessageSubmitted", "number_hash"),
        ("ResendRequested", "sealed"),
        ("ClientRouteChanged", "sealed_secret"),
        ("UserCreated", "password_hash"),
        ("PasswordChanged", "password_hash"),
    }
)
