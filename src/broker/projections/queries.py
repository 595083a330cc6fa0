"""What others read of the read models. All raise StoreUnavailable."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import msgspec

from broker import clock
from broker.domain import ids
from broker.events.positions import Position
from broker.projections import checkpoints, sql, statistics
from broker.projections.checkpoints import Checkpoint
from broker.projections.store import Store

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  the driver gives UTC times without a zone
_MILLISECOND = timedelta(milliseconds=1)


class Listed(msgspec.Struct, frozen=True):
    """A message without its body and number; times in milliseconds since the epoch.

    `attempt_count` is of the current cycle.
    """

    message_id: str
    client_id: str
    status: str
    parked: bool
    reason: str | None
    cycle: int
    attempt_count: int
    queued_at: int
    delivered_at: int | None
    failed_at: int | None
    next_attempt_at: int | None
    last_error: str | None
    last_code: int | None
    domain: str | None
    certificate: str | None
    correlation_id: str | None


class MessageRow(Listed, frozen=True):
    """A message with what is sealed of it, and where its submit is in the log."""

    sender_number_hashed: str
    encrypted_body: bytes
    submitted: Position


class AttemptRow(msgspec.Struct, frozen=True):
    """A delivery attempt; `at` in milliseconds since the epoch."""

    cycle: int
    attempt: int
    at: int
    actor: str
    channel: str
    succeeded: bool
    latency_ms: int
    code: int | None
    error: str | None


class Counts(msgspec.Struct, frozen=True):
    """Messages by status; parked ones are among the queued."""

    queued: int
    delivered: int
    failed: int
    parked: int


class Queries:
    """Reads of the database at `url`; connects on first use, gives up soon."""

    def __init__(self, url: str, *, pool: int = 4) -> None:
        self.store = Store(url, pool=pool, connect_timeout=2.0, timeout=5.0)

    async def close(self) -> None:
        """Close the connections."""
        await self.store.close()

    async def ping(self) -> None:
        """Raises StoreUnavailable when the database does not answer."""
        await self.store.select("SELECT 1")

    async def message(self, message_id: bytes) -> MessageRow | None:
        """The message of this id, None while the read model does not know it."""
        rows = await self.store.select("SELECT * FROM messages WHERE message_id=%s", (ids.text(message_id),))
        return _message(rows[0]) if rows else None

    async def attempts(self, message_id: bytes) -> list[AttemptRow]:
        """Every attempt of the message, oldest first, of all cycles."""
        rows = await self.store.select(
            "SELECT * FROM attempts WHERE message_id=%s ORDER BY ms,seq", (ids.text(message_id),)
        )
        return [_attempt(row) for row in rows]

    async def counts(self, client_ids: Iterable[str] | None = None) -> Counts:
        """Messages by status, of these clients or of all; counted by index."""
        where = ""
        args: tuple[str, ...] = ()
        if client_ids is not None:
            args = tuple(client_ids)
            if not args:
                return Counts(0, 0, 0, 0)
            where = f" WHERE client_id IN ({','.join(['%s'] * len(args))})"
        rows = await self.store.select(
            f"SELECT status,parked,COUNT(*) AS n FROM messages{where} GROUP BY status,parked", args
        )
        found = {"queued": 0, "delivered": 0, "failed": 0}
        for row in rows:
            found[row["status"]] += row["n"]
        return Counts(**found, parked=sum(row["n"] for row in rows if row["parked"]))

    async def latency(self, since_ms: int) -> dict[str, int | None]:
        """Milliseconds from submit to delivery in the first cycle: `p50`, `p95`, `p99` (buckets of 19 %)."""
        rows = await self.store.select(
            "SELECT bucket,SUM(messages) AS n FROM latencies "
            f"WHERE hour>={sql.hour(since_ms)} GROUP BY bucket"
        )
        buckets = {int(row["bucket"]): int(row["n"]) for row in rows}
        return {f"p{share}": statistics.percentile(buckets, share / 100) for share in (50, 95, 99)}

    async def checkpoints(self) -> list[Checkpoint]:
        """How far every projection is on every stream."""
        return await checkpoints.everything(self.store)

    async def passed(self, position: Position, projection: str = "messages") -> bool:
        """Whether the projection has applied the event at `position`."""
        rows = await self.store.select(
            "SELECT ms,seq FROM checkpoints WHERE projection=%s AND stream=%s", (projection, position.stream)
        )
        return bool(rows) and (rows[0]["ms"], rows[0]["seq"]) >= (position.ms, position.seq)

    async def wait_passed(
        self, position: Position, projection: str = "messages", *, within: float = 1.0
    ) -> bool:
        """Wait until the projection has applied the event at `position`; False after `within` seconds."""
        give_up = clock.monotonic() + within
        wait = 0.005
        while not await self.passed(position, projection):
            if clock.monotonic() + wait > give_up:
                return False
            await asyncio.sleep(wait)
            wait = min(wait * 1.5, 0.05)
        return True


def milliseconds(value: datetime) -> int:
    """Milliseconds since the epoch of a DATETIME, which is UTC."""
    return (value - _EPOCH) // _MILLISECOND


def optional_milliseconds(value: datetime | None) -> int | None:
    """As `milliseconds`; None where there is none."""
    return None if value is None else milliseconds(value)


def listed(row: dict[str, Any]) -> Listed:
    """A row of `messages` that has its columns at least."""
    return Listed(**_listed(row))


def _listed(row: dict[str, Any]) -> dict[str, Any]:
    found = {name: row[name] for name in Listed.__struct_fields__}
    for name in ("queued_at", "delivered_at", "failed_at", "next_attempt_at"):
        found[name] = optional_milliseconds(found[name])
    return found | {"parked": bool(row["parked"])}


def _message(row: dict[str, Any]) -> MessageRow:
    return MessageRow(
        **_listed(row),
        sender_number_hashed=row["sender_number_hashed"],
        encrypted_body=row["encrypted_body"],
        submitted=Position(row["stream"], row["submitted_ms"], row["submitted_seq"]),
    )


def _attempt(row: dict[str, Any]) -> AttemptRow:
    return AttemptRow(
        cycle=row["cycle"],
        attempt=row["attempt"],
        at=milliseconds(row["at"]),
        actor=row["actor"],
        channel=row["channel"],
        succeeded=bool(row["succeeded"]),
        latency_ms=row["latency_ms"],
        code=row["code"],
        error=row["error"],
    )
