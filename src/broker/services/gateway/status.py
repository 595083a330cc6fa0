"""GET /api/v1/messages/{id}: what became of a producer's own message.

Redis is asked first, because it knows every message from its 202 on; the read model adds the attempts. With
MySQL away the answer is what Redis knows, or 503, never a 404.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec
from starlette.responses import Response

from broker import clock
from broker.domain import ids
from broker.errors import BrokerError, NotFound, StoreUnavailable
from broker.events import open_messages
from broker.events.connection import Redis
from broker.events.keys import LogKeys
from broker.events.open_messages import FinishedMessage, OpenMessage
from broker.projections.queries import AttemptRow, MessageRow

Status = Literal["queued", "delivered", "failed"]
Known = OpenMessage | FinishedMessage


class ReadModel(Protocol):
    """What is asked of `projections.queries`. Both raise StoreUnavailable."""

    async def message(self, message_id: bytes) -> MessageRow | None: ...

    async def attempts(self, message_id: bytes) -> Sequence[AttemptRow]: ...


class Attempt(msgspec.Struct, frozen=True):
    """One attempt to deliver. Attempt numbers count from 1 within a cycle; a resend opens the next cycle."""

    cycle: int
    attempt: int
    at: str
    outcome: Literal["delivered", "failed"]
    channel: str
    code: int | None
    latency_ms: int
    error: str | None


class MessageStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The answer. `history_complete` is false while the read model does not show every attempt yet."""

    message_id: str
    client_id: str
    status: Status
    parked: bool = False
    reason: str | None = None
    cycle: int
    attempt_count: int
    """Made in the current cycle."""
    queued_at: str
    delivered_at: str | None = None
    failed_at: str | None = None
    next_retry_at: str | None = None
    attempts: Sequence[Attempt] = ()
    history_complete: bool


class StatusReader:
    """Reads statuses; `read_model` is None where no database is configured."""

    def __init__(self, redis: Redis, keys: LogKeys, read_model: ReadModel | None) -> None:
        self._redis = redis
        self._keys = keys
        self._read_model = read_model

    async def answer(self, client_id: str, message_id: str) -> Response:
        """The response for `client_id`.

        Raises NotFound (unknown, or another's), ValidationError, LogUnavailable and StoreUnavailable.
        """
        raw = ids.find(message_id, len(self._keys.partitions))
        status = await self.read(client_id, raw)
        content = msgspec.json.encode(status)
        return Response(content, headers={"cache-control": "no-store"}, media_type="application/json")

    async def read(self, client_id: str, message_id: bytes) -> MessageStatus:
        """As `answer`, as a value."""
        known, away = await self._known(message_id)
        if known is not None and known.client_id != client_id:
            raise NotFound
        row: MessageRow | None = None
        attempts: list[Attempt] = []
        try:
            row, attempts = await self._rows(message_id)
        except StoreUnavailable:
            if known is None:
                raise
        if row is not None and row.client_id != client_id:
            raise NotFound
        if known is not None:
            return _merge(known, row, attempts)
        if away is not None:
            # What the read model says may be older than what Redis would.
            raise away
        if row is None:
            raise NotFound
        return _from_row(ids.text(message_id), row, attempts)

    async def _known(self, message_id: bytes) -> tuple[Known | None, BrokerError | None]:
        try:
            found = await open_messages.look_up(self._redis, self._keys, [message_id])
        except BrokerError as error:
            return None, error
        return found[0], None

    async def _rows(self, message_id: bytes) -> tuple[MessageRow | None, list[Attempt]]:
        if self._read_model is None:
            raise StoreUnavailable
        row = await self._read_model.message(message_id)
        if row is None:
            return None, []
        return row, [_attempt(attempt) for attempt in await self._read_model.attempts(message_id)]


def _merge(known: Known, row: MessageRow | None, attempts: list[Attempt]) -> MessageStatus:
    """What Redis knows wins; the read model, which may be behind, adds the history."""
    shown = sum(attempt.cycle == known.cycle for attempt in attempts)
    current = row is not None and row.cycle == known.cycle
    reason = row.reason if row is not None and current else None
    parked, next_retry, delivered_at, failed_at = False, None, None, None
    status: Status = "queued"
    if isinstance(known, OpenMessage):
        parked = known.phase == "parked"
        next_retry = known.due_ms
    elif known.outcome == "delivered":
        status, delivered_at = "delivered", known.at_ms
    else:
        status, failed_at = "failed", known.at_ms
    return MessageStatus(
        message_id=ids.text(known.message_id),
        client_id=known.client_id,
        status=status,
        parked=parked,
        reason=reason,
        cycle=known.cycle,
        attempt_count=known.attempts,
        # Without the read model, the time in the id: the gateway makes both at once.
        queued_at=clock.iso(ids.created_ms(known.message_id) if row is None else row.queued_at),
        delivered_at=_time(delivered_at),
        failed_at=_time(failed_at),
        next_retry_at=_time(next_retry),
        attempts=attempts,
        history_complete=row is not None and shown >= known.attempts,
    )


def _from_row(message_id: str, row: MessageRow, attempts: list[Attempt]) -> MessageStatus:
    return MessageStatus(
        message_id=message_id,
        client_id=row.client_id,
        status=msgspec.convert(row.status, Status),
        parked=row.parked,
        reason=row.reason,
        cycle=row.cycle,
        attempt_count=row.attempt_count,
        queued_at=clock.iso(row.queued_at),
        delivered_at=_time(row.delivered_at),
        failed_at=_time(row.failed_at),
        next_retry_at=_time(row.next_attempt_at),
        attempts=attempts,
        history_complete=True,
    )


def _attempt(row: AttemptRow) -> Attempt:
    return Attempt(
        row.cycle,
        row.attempt,
        clock.iso(row.at),
        "delivered" if row.succeeded else "failed",
        row.channel,
        row.code,
        row.latency_ms,
        row.error,
    )


def _time(ms: int | None) -> str | None:
    return None if ms is None else clock.iso(ms)
