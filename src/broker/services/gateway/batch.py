"""POST /api/v1/messages/batch: up to 1000 messages as JSON or NDJSON, one result each."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from time import perf_counter

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from broker import telemetry, tracing
from broker.domain.submission import Submission
from broker.errors import BrokerError
from broker.events.acceptance import Acceptance, Origin
from broker.events.appender import Result
from broker.services.gateway import parsing, traces
from broker.services.gateway.messages import Entrance, accepted, refusal
from broker.web import body, problems
from broker.web.identity import Identity
from broker.web.problems import Detail, Problem

# Each may hold MAX_BATCH_BYTES in memory, and none may keep the others out.
IN_FLIGHT = 64
IN_FLIGHT_OF_ONE = 16


class Taken(msgspec.Struct, frozen=True, tag_field="status", tag="queued"):
    """A message of the batch that is in the log; `replayed` where its key had brought it there before."""

    message_id: str
    queued_at: str
    position: str
    replayed: bool


class Refused(msgspec.Struct, frozen=True, tag_field="status", tag="error"):
    """A message of the batch that was not taken, or (`log_unavailable`) of which it is not known."""

    error: str
    message: str
    details: Sequence[Detail]


class Answer(msgspec.Struct, frozen=True):
    """The body of a 202 or 207: one result for each message, in order."""

    accepted: int
    refused: int
    results: Sequence[Taken | Refused]


_encode = msgspec.json.Encoder().encode


class SubmitBatch:
    """The endpoint."""

    def __init__(self, entrance: Entrance, acceptance: Acceptance) -> None:
        self._entrance = entrance
        self._acceptance = acceptance
        self._in_flight: Counter[str] = Counter()
        self._reading = asyncio.Lock()

    async def endpoint(self, request: Request) -> Response:
        """Take what can be taken. Raises Problem for what is wrong with the whole."""
        identity, origin = await self._entrance(request.scope, telemetry.correlation.get())
        client_id = identity.client_id
        of_one, of_all = self._in_flight[client_id], self._in_flight.total()
        if of_one >= IN_FLIGHT_OF_ONE or of_all >= IN_FLIGHT:
            raise Problem("overloaded", "Too many batches are being taken at once.")
        self._in_flight[client_id] += 1
        try:
            return await self._take(request, identity, origin)
        finally:
            self._in_flight[client_id] -= 1
            if not self._in_flight[client_id]:
                del self._in_flight[client_id]

    async def _take(self, request: Request, identity: Identity, origin: Origin) -> Response:
        scope = request.scope
        start = perf_counter()
        kind = body.media_type(scope, (body.JSON, body.NDJSON))
        if body.header(scope, b"idempotency-key") is not None:
            reason = "is for single messages; each message of a batch has its own `idempotency_key`"
            raise body.invalid([Detail("Idempotency-Key", reason)])
        raw = await body.read(scope, request.receive, parsing.MAX_BATCH_BYTES)
        async with self._reading:
            items = await parsing.batch(raw, lines=kind == body.NDJSON)
        self._entrance.limits.charge(identity.fingerprint, len(items) - 1)
        results = await self._results(origin, items)
        count = sum(isinstance(result, Taken) for result in results)
        if tracing.active is not None:
            traces.batch(results, perf_counter() - start, origin.correlation_id, dict(scope["headers"]))
        return Response(
            _encode(Answer(count, len(results) - count, results)),
            202 if count == len(results) else 207,
            media_type=body.JSON,
        )

    async def _results(self, origin: Origin, items: list[Submission | Problem]) -> list[Taken | Refused]:
        valid = [item for item in items if isinstance(item, Submission)]
        try:
            found = await self._acceptance.accept_all(origin, valid) if valid else []
        except BrokerError as error:
            raise refusal(error) from error
        failures = [result for result in found if isinstance(result, BrokerError)]
        if failures and len(failures) == len(found):
            # Nothing was taken and some of it might be later: the batch is to be retried whole.
            raise failures[0]
        outcomes = iter(found)
        return [
            _refused(item) if isinstance(item, Problem) else _result(next(outcomes), origin.client_id)
            for item in items
        ]


def _result(outcome: Result | BrokerError, client_id: str) -> Taken | Refused:
    if isinstance(outcome, BrokerError):
        return _refused(problems.of(outcome))
    try:
        answer = accepted(outcome, client_id)
    except Problem as problem:
        return _refused(problem)
    replayed = getattr(outcome, "replayed", False)
    return Taken(answer.message_id, answer.queued_at, answer.position, replayed)


def _refused(problem: Problem) -> Refused:
    return Refused(problem.code, problem.detail or problem.message, problem.details)
