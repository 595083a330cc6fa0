"""Every Redis key, named once. `b1` is the version of this layout.

All keys of a partition share a hash tag, so that each script touches one slot of a cluster.
"""

from __future__ import annotations

from typing import Final

from broker.events.positions import ACCESS, CONTROL

LAYOUT: Final = "b1"
MINUTE_MS: Final = 60_000
DELIVERY_GROUP: Final = "delivery"
PROJECTION_GROUP: Final = "projections"
ARCHIVE_GROUP: Final = "archive"


class StreamKeys:
    """Keys of one stream: a partition, `control` or `access`."""

    def __init__(self, log_name: str, stream: str) -> None:
        self.stream = stream
        self.base = f"{LAYOUT}:{{{log_name}:{stream}}}"
        self.meta = f"{self.base}:meta"
        """Hash: incarnation, partitions, refused (why, when set)."""
        self.events = f"{self.base}:events"
        """The stream itself."""
        self.lease = f"{self.base}:lease"
        """Hash: owner, epoch, expires (ms) of the projector that owns this stream."""
        self.archive = f"{self.base}:archive"
        """Hash: position, events, segment, sha256 that are durably archived; bound and holder of trimming."""
        self.archive_lease = f"{self.base}:archive-lease"
        """Hash, as `lease`: of the process that archives and trims this stream."""

    def batch(self, batch_id: str) -> str:
        """String with expiry: the result of an append, so that a retry answers instead of appending."""
        return f"{self.base}:batch:{batch_id}"

    def rate(self, kind: str, name: str) -> str:
        """String with expiry: when this bucket of a rate limit is full again (microseconds)."""
        return f"{self.base}:rate:{kind}:{name}"

    def login(self, kind: str, name: str) -> str:
        """String with expiry: what the throttle of sign-ins counts or knows under this name."""
        return f"{self.base}:login:{kind}:{name}"


class PartitionKeys(StreamKeys):
    """Keys of a partition of message events; all but `events` are derived from it."""

    def __init__(self, log_name: str, number: int) -> None:
        super().__init__(log_name, str(number))
        self.number = number
        self.open = f"{self.base}:open"
        """Hash: message id → record (`open_messages`) of every message without an outcome."""
        self.age = f"{self.base}:age"
        """Sorted set: message id → stream ms of the event that holds its body, unless moved aside."""
        self.due = f"{self.base}:due"
        """Sorted set: message id → milliseconds by Redis' clock of its next attempt."""
        self.bodies = f"{self.base}:bodies"
        """Hash: message id → data of the event that holds the ciphertext, of messages moved aside."""
        self.workers = f"{self.base}:workers"
        """Hash: consumer → milliseconds until which it counts as alive, `|`, for how long it said so."""
        self.holds = f"{self.base}:holds"
        """Hash with expiry: entry id → consumer, `|`, delivery count; what was in hand when the group went.

        `w:` and a consumer: it has said so.
        """

    def idempotency(self, key_hash: bytes) -> str:
        """String with expiry: what was answered for an idempotency key."""
        return f"{self.base}:idem:{key_hash.hex()}"

    def done(self, created_ms: int) -> str:
        """Hash with expiry: message id → outcome, for messages made in the same minute."""
        return f"{self.base}:done:{created_ms // MINUTE_MS}"


class ControlKeys(StreamKeys):
    """Keys of the control slot."""

    def __init__(self, log_name: str) -> None:
        super().__init__(log_name, CONTROL)
        self.registry = f"{self.base}:registry"
        """Hash: `client:x`, `cert:fingerprint`, `user:id`, `email:x` … → `version|payload`."""
        self.client_keys = f"{self.base}:client-keys"
        """Hash: client → its keys, wrapped by the master key. Never in events, archive or data backups."""
        self.key_holders = f"{self.base}:key-holders"
        """Hash: process → milliseconds until which it counts, `|`, ids of the master keys it has loaded."""
        self.followers = f"{self.base}:followers"
        """Hash: process → id of the last control event that it has applied, empty before the first."""

    def notice(self, name: str, day: str) -> str:
        """String with expiry: this was said on this day."""
        return f"{self.base}:notice:{day}:{name}"

    def session(self, session_id: str) -> str:
        """Hash with expiry: user, mark of their password, hash of the current refresh token and old ones."""
        return f"{self.base}:session:{session_id}"

    def sessions_of(self, user_id: str) -> str:
        """Sorted set with expiry: session ids of a user by the time they began."""
        return f"{self.base}:sessions:{user_id}"


class LogKeys:
    """Keys of a whole log."""

    def __init__(self, log_name: str, partitions: int) -> None:
        self.partitions = tuple(PartitionKeys(log_name, number) for number in range(partitions))
        self.control = ControlKeys(log_name)
        self.access = StreamKeys(log_name, ACCESS)

    @property
    def streams(self) -> tuple[StreamKeys, ...]:
        """Every stream, the partitions first."""
        return (*self.partitions, self.control, self.access)
