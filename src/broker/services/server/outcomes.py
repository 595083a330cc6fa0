"""Outcomes that are reported directly, decided from Redis, written by the workers' guarded script."""

from __future__ import annotations

from typing import Literal

import msgspec

from broker import clock
from broker.domain import ids, retry
from broker.domain.retry import RetryPolicy
from broker.errors import Conflict, LogUnavailable, NotFound
from broker.events import envelope, open_messages, types
from broker.events.claims import Settlement
from broker.events.connection import Redis
from broker.events.delivery_log import DeliveryLog
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.events.open_messages import FinishedMessage, OpenMessage

CHANNEL = "direct"
"""The channel of attempts that nobody but their reporter saw."""

# Each round that does not write was overtaken by somebody who did.
_ROUNDS = 20

Known = OpenMessage | FinishedMessage


class Report(msgspec.Struct, frozen=True):
    """What is said about a message. `attempts`: how many its cycle has with this one; None for one more."""

    message_id: bytes
    actor: str
    correlation_id: str | None = None
    attempts: int | None = None
    error: str | None = None


class Outcomes:
    """Ends cycles, records attempts, schedules retries; outcomes stay known for `outcomes_kept_ms`."""

    def __init__(
        self,
        redis: Redis,
        keys: LogKeys,
        identity: LogIdentity,
        policy: RetryPolicy,
        *,
        outcomes_kept_ms: int,
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._policy = policy
        self._logs = [
            DeliveryLog(redis, partition, identity, "server", outcomes_kept_ms=outcomes_kept_ms)
            for partition in keys.partitions
        ]

    async def look_up(self, message_ids: list[bytes]) -> list[Known | None]:
        """What Redis knows of each. Raises LogUnavailable."""
        return await open_messages.look_up(self._redis, self._keys, message_ids)

    async def finish(self, report: Report, outcome: Literal["delivered", "failed"]) -> FinishedMessage:
        """End the open cycle so, unless it ended so before.

        Raises NotFound, Conflict (it ended otherwise, or the attempts do not add up), LogUnavailable.
        """
        for _ in range(_ROUNDS):
            known = await self._known(report.message_id)
            if isinstance(known, FinishedMessage):
                if (known.outcome == "delivered") != (outcome == "delivered"):
                    raise Conflict(f"This message has {_ENDED[known.outcome]} already.")
                return known
            ended = await self._end(known, report, outcome)
            if ended is not None:
                return ended
        raise LogUnavailable("The message changed all the time.")

    async def requeue(self, report: Report) -> OpenMessage:
        """The message stays queued; one more failed attempt, if `attempts` says so, schedules the next.

        Raises NotFound, Conflict (it has ended, or has no attempts left), LogUnavailable.
        """
        for _ in range(_ROUNDS):
            known = await self._known(report.message_id)
            if isinstance(known, FinishedMessage):
                raise Conflict(f"This message has {_ENDED[known.outcome]}; a resend puts it back.")
            if report.attempts is None or not _is_new(known, report):
                return known
            if retry.exhausted(self._policy, report.attempts):
                raise Conflict("This was the last attempt of the cycle: report `failed`.")
            await self._retry(known, report)
        raise LogUnavailable("The message changed all the time.")

    async def _known(self, message_id: bytes) -> Known:
        known = (await self.look_up([message_id]))[0]
        if known is None:
            raise NotFound("There is no such message, or it ended long ago.")
        return known

    async def _end(
        self, known: OpenMessage, report: Report, outcome: Literal["delivered", "failed"]
    ) -> FinishedMessage | None:
        """The ended message; None when somebody else was faster."""
        now, client_id = clock.now_ms(), known.client_id
        attempts = known.attempts
        attempted = None
        if report.attempts is None or _is_new(known, report):
            attempts += 1
            attempted = _attempted(known, report, succeeded=outcome == "delivered")
        event: types.Event = types.Delivered(client_id, known.cycle, attempts)
        if outcome == "failed":
            event = types.Failed(client_id, known.cycle, attempts, report.error or "reported as failed")
        written = await self._settle(
            Settlement(
                kind="done",
                message_id=known.message_id,
                client_id=client_id,
                cycle=known.cycle,
                attempt=known.attempts,
                envelope=envelope.encode(now, report.actor, report.correlation_id),
                attempted=attempted,
                event=event,
                outcome=outcome,
                at_ms=now,
            )
        )
        if not written:
            return None
        return FinishedMessage(known.message_id, outcome, known.cycle, attempts, now, client_id)

    async def _retry(self, known: OpenMessage, report: Report) -> None:
        delay = retry.delay_ms(self._policy, known.attempts + 1)
        await self._settle(
            Settlement(
                kind="retry",
                message_id=known.message_id,
                client_id=known.client_id,
                cycle=known.cycle,
                attempt=known.attempts,
                envelope=envelope.encode(clock.now_ms(), report.actor, report.correlation_id),
                attempted=_attempted(known, report, succeeded=False),
                event=types.RetryScheduled(known.client_id, known.cycle, known.attempts + 1, delay),
                delay_ms=delay,
            )
        )

    async def _settle(self, settlement: Settlement) -> bool:
        log = self._logs[ids.partition(settlement.message_id)]
        return (await log.settle([settlement]))[0] is not None


_ENDED = {"delivered": "been delivered", "failed": "failed", "discarded": "been discarded"}


def _is_new(known: OpenMessage, report: Report) -> bool:
    """Whether the report tells of an attempt that is not recorded yet. Raises Conflict."""
    if report.attempts not in {known.attempts, known.attempts + 1}:
        raise Conflict(
            f"attempt_count is {report.attempts}, but the message has had {known.attempts} attempts."
        )
    return report.attempts == known.attempts + 1


def _attempted(known: OpenMessage, report: Report, *, succeeded: bool) -> types.DeliveryAttempted:
    error = None if succeeded else report.error
    return types.DeliveryAttempted(
        known.client_id, known.cycle, known.attempts + 1, CHANNEL, succeeded, 0, None, error
    )
