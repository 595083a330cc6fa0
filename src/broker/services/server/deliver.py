"""POST /internal/messages/deliver: the inbox of our own workers, and direct calls.

A worker that delivers through the inbox names its claim and writes the outcome itself; the server only makes
sure that `open` bears the claim out. Without a claim the server writes the outcome.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from broker import clock, telemetry
from broker.domain import ids
from broker.errors import BrokerError, Conflict, NotFound
from broker.events.open_messages import OpenMessage
from broker.services.server import wire
from broker.services.server.outcomes import Known, Outcomes, Report
from broker.web import body, problems
from broker.web.admission import Admission
from broker.web.identity import Identity

MAX_BYTES = 1024 * 1024

_one = body.Reader(wire.Delivery)
_many = body.Reader(wire.Deliveries)


class Deliver:
    """The endpoint."""

    def __init__(self, admission: Admission, outcomes: Outcomes, partitions: int) -> None:
        self._admission = admission
        self._outcomes = outcomes
        self._partitions = partitions

    async def endpoint(self, request: Request) -> Response:
        """One delivery, answered or refused; or many, each with its result."""
        caller = self._admission(request.scope)
        body.media_type(request.scope, (body.JSON,))
        value = body.parse(await body.read(request.scope, request.receive, MAX_BYTES))
        answer: wire.Delivered | wire.DeliveryResults
        if isinstance(value, dict) and "deliveries" in value:
            answer = wire.DeliveryResults(await self._all(_many.convert(value).deliveries, caller))
        else:
            answer = await self._single(_one.convert(value), caller)
        return Response(msgspec.json.encode(answer), media_type=body.JSON)

    async def _single(self, delivery: wire.Delivery, caller: Identity) -> wire.Delivered:
        message_id = ids.find(delivery.message_id, self._partitions)
        known = (await self._outcomes.look_up([message_id]))[0]
        return await self._deliver(delivery, message_id, known, caller)

    async def _all(
        self, deliveries: Sequence[wire.Delivery], caller: Identity
    ) -> list[wire.Delivered | wire.NotDelivered]:
        parsed = [self._parse(delivery) for delivery in deliveries]
        valid = [message_id for message_id in parsed if isinstance(message_id, bytes)]
        known = dict(zip(valid, await self._outcomes.look_up(valid), strict=True)) if valid else {}
        results: list[wire.Delivered | wire.NotDelivered] = []
        for delivery, message_id in zip(deliveries, parsed, strict=True):
            if isinstance(message_id, BrokerError):
                results.append(_refused(delivery, message_id))
                continue
            try:
                results.append(await self._deliver(delivery, message_id, known[message_id], caller))
            except BrokerError as error:
                results.append(_refused(delivery, error))
        return results

    def _parse(self, delivery: wire.Delivery) -> bytes | BrokerError:
        try:
            return ids.find(delivery.message_id, self._partitions)
        except BrokerError as error:
            return error

    async def _deliver(
        self, delivery: wire.Delivery, message_id: bytes, known: Known | None, caller: Identity
    ) -> wire.Delivered:
        """Raises NotFound, Conflict, LogUnavailable."""
        if known is None:
            raise NotFound("There is no such message, or it ended long ago.")
        if delivery.claim is not None and isinstance(known, OpenMessage):
            _check_claim(delivery, known)
            return _delivered(message_id, clock.now_ms())
        actor = f"{caller.role}:{delivery.worker_id}"
        report = Report(message_id, actor, telemetry.correlation.get())
        return _delivered(message_id, (await self._outcomes.finish(report, "delivered")).at_ms)


def _check_claim(delivery: wire.Delivery, known: OpenMessage) -> None:
    """Raises Conflict unless the message waits for exactly this attempt."""
    expected = known.phase == "ready" and delivery.cycle == known.cycle
    if not expected or delivery.attempt != known.attempts + 1:
        raise Conflict("The message does not wait for this attempt: the claim was lost.")


def _delivered(message_id: bytes, at_ms: int) -> wire.Delivered:
    return wire.Delivered(ids.text(message_id), clock.iso(at_ms))


def _refused(delivery: wire.Delivery, error: BrokerError) -> wire.NotDelivered:
    problem = problems.of(error)
    return wire.NotDelivered(delivery.message_id, problem.code, problem.detail or problem.message)
