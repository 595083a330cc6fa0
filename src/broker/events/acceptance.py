"""From a valid submission to events in the log: id, sealing, idempotency, partition. Plain text ends here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from broker import tracing
from broker.domain import ids
from broker.domain.submission import Submission
from broker.errors import BrokerError, LogFull
from broker.events.appender import Appended, Appender, Draft, Result
from broker.events.sealing import Sealer
from broker.events.types import MessageSubmitted

# Sealing a thousand messages in one go would hold up everybody else for some 20 ms.
_BREATHER = 100


class Origin(msgspec.Struct, frozen=True):
    """Where submissions come from: the client they belong to, and who brought them in."""

    client_id: str
    actor: str
    """As in an envelope: `client:demo`, `gateway:gw-1`."""
    certificate: bytes | None = None
    """SHA-256 fingerprint, 32 bytes."""
    domain: str | None = None
    correlation_id: str | None = None


class Acceptance:
    """Seals submissions and appends them. Works while MySQL and the server are away."""

    def __init__(
        self, appender: Appender, sealer: Sealer, *, full: Callable[[], str | None] = lambda: None
    ) -> None:
        """`full` says why the log takes nothing more, None while it does."""
        self._appender = appender
        self._sealer = sealer
        self._full = full

    def draft(
        self,
        origin: Origin,
        plain: Submission,
        *,
        message_id: bytes | None = None,
        queued_at: int | None = None,
        idempotency: bytes | None = None,
        partition: int | None = None,
    ) -> Draft:
        """The sealed message, ready to be appended. Raises KeyUnavailable or KeyErased.

        `idempotency` stands in for the hash of the submission's own key; `queued_at` (ms) is the time in the
        id unless given; `partition` is for submissions without a key that belong together.
        """
        sealer, client_id = self._sealer, origin.client_id
        request_hash = None
        if idempotency is None and plain.idempotency_key is not None:
            idempotency = sealer.idempotency_hash(client_id, plain.idempotency_key)
        if idempotency is not None:
            request_hash = sealer.request_hash(client_id, plain)
        if message_id is None:
            if partition is None or idempotency is not None:
                partition = self._appender.partition_for(idempotency)
            message_id = ids.new(partition)
        number = plain.sender_number
        event = MessageSubmitted(
            client_id,
            sealer.seal(client_id, message_id, number, plain.message_body, plain.metadata),
            sealer.number_hash(client_id, number),
            origin.certificate,
            idempotency,
            request_hash,
            origin.domain,
        )
        at = ids.created_ms(message_id) if queued_at is None else queued_at
        return Draft(message_id, client_id, event, origin.actor, at, origin.correlation_id)

    async def accept(self, origin: Origin, plain: Submission) -> Result:
        """Append one submission; returns when it is durable.

        Raises LogUnavailable (unknown whether it was), LogFull, KeyUnavailable, KeyErased.
        """
        return await self.append(self.draft(origin, plain))

    async def append(self, draft: Draft) -> Result:
        """Append one draft; returns when it is durable. Raises LogUnavailable or LogFull."""
        self._require_room()
        start = tracing.now()
        result = (await self._appender.append((draft,)))[0]
        _traced(start, draft, result)
        return result

    async def accept_all(self, origin: Origin, plains: Sequence[Submission]) -> list[Result | BrokerError]:
        """Append many, those without a key together in one partition; one result each, in order.

        A partition that is away makes its items BrokerErrors. Raises LogFull, KeyUnavailable or KeyErased.
        """
        self._require_room()
        together = self._appender.partition_for()
        lanes: dict[int, list[tuple[int, Draft]]] = {}
        for index, plain in enumerate(plains):
            if index % _BREATHER == _BREATHER - 1:
                await asyncio.sleep(0)
            draft = self.draft(origin, plain, partition=together)
            lanes.setdefault(ids.partition(draft.message_id), []).append((index, draft))
        results: list[Result | BrokerError] = [BrokerError()] * len(plains)
        await asyncio.gather(*(self._append_lane(lane, results) for lane in lanes.values()))
        return results

    def _require_room(self) -> None:
        if (why := self._full()) is not None:
            raise LogFull(why)

    async def _append_lane(self, lane: list[tuple[int, Draft]], results: list[Result | BrokerError]) -> None:
        found: Sequence[Result | BrokerError]
        start = tracing.now()
        try:
            found = await self._appender.append([draft for _, draft in lane])
        except BrokerError as error:
            found = [error] * len(lane)
        for (index, _), result in zip(lane, found, strict=True):
            results[index] = result
        if start:
            for (_, draft), result in zip(lane, found, strict=True):
                _traced(start, draft, result)


def _traced(start: int, draft: Draft, result: Result | BrokerError) -> None:
    """The span of an append, until it was durable."""
    if start and isinstance(result, Appended) and not result.replayed:
        tracing.record(
            result.message_id,
            "append",
            start,
            key="append",
            kind="producer",
            client=draft.client_id,
            position=str(result.position),
        )
