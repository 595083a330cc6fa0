"""POST /api/v1/messages: the hot path, a bare ASGI endpoint.

It does by itself what the layers around the other routes do (correlation, guard, request metrics), because
each of them costs as much as sealing a message.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Protocol

import msgspec
from starlette.types import Receive, Scope, Send

from broker import clock, telemetry, tracing
from broker.domain import ids
from broker.domain.clients import ClientEntry
from broker.errors import KeyErased, Undecryptable
from broker.events.acceptance import Acceptance, Origin
from broker.events.appender import Appended, Result
from broker.services.gateway import parsing, traces
from broker.web import body, correlation, metrics, problems, rate_limit
from broker.web.admission import Admission
from broker.web.identity import Identity
from broker.web.problems import ClientDisconnected, Problem
from broker.web.rate_limit import RateLimits

PATH = "/api/v1/messages"

log = telemetry.get_logger(__name__)


class Clients(Protocol):
    """The followed registry."""

    def client(self, client_id: str) -> ClientEntry | None: ...


class Accepted(msgspec.Struct, frozen=True):
    """The body of a 202."""

    message_id: str
    client_id: str
    status: str
    queued_at: str
    position: str


_encode = msgspec.json.Encoder().encode


class Entrance:
    """What every submission passes: certificate, client, rate. Shared by single messages and batches."""

    def __init__(self, admission: Admission, clients: Clients, limits: RateLimits) -> None:
        self._admission = admission
        self._clients = clients
        self.limits = limits

    async def __call__(self, scope: Scope, correlation_id: str | None) -> tuple[Identity, Origin]:
        """The producer. Raises Problem 401, 403 or 429, or TrustUnproved."""
        identity = self._admission(scope)
        client_id = identity.client_id
        client = self._clients.client(client_id)
        if client is None or client.status != "active":
            raise Problem("client_unknown", f"The client {client_id} may not submit messages.")
        await self.limits.submit(scope, identity.fingerprint)
        certificate = bytes.fromhex(identity.fingerprint)
        origin = Origin(client_id, "client:" + client_id, certificate, client.domain, correlation_id)
        return identity, origin


def accepted(result: Result, client_id: str) -> Accepted:
    """The answer to a submission. Raises Problem 409."""
    if not isinstance(result, Appended):
        raise Problem("idempotency_conflict", "This idempotency key was used for another message.")
    queued_at = clock.iso(result.queued_at)
    return Accepted(ids.text(result.message_id), client_id, "queued", queued_at, str(result.position))


def refusal(error: Exception) -> Exception:
    """The error as a producer sees it: erased keys mean that the client is no more."""
    if isinstance(error, KeyErased):
        return Problem("client_unknown", "The keys of this client were erased.")
    if isinstance(error, Undecryptable):
        # Sealing reads nothing but the client's own keys.
        return Problem("key_unavailable", "The keys of this client cannot be read.")
    return error


class Submit:
    """The endpoint."""

    def __init__(self, entrance: Entrance, acceptance: Acceptance) -> None:
        self._entrance = entrance
        self._acceptance = acceptance
        self._total = metrics.counter(
            "broker_http_requests_total", "Requests answered.", ("role", "route", "status")
        )
        self._seconds = metrics.histogram(
            "broker_http_request_seconds", "Time to answer.", ("role", "route")
        ).labels("gateway", PATH)
        self._counters = {202: self._total.labels("gateway", PATH, 202)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = perf_counter()
        headers = dict(scope["headers"])
        given = correlation.given(headers.get(b"x-correlation-id"))
        correlation_id = given or correlation.new_id()
        telemetry.correlation.set(correlation_id)
        status = 499
        try:
            message_id, content, extra = await self._take(scope, receive, headers, given)
        except ClientDisconnected:
            pass
        except asyncio.CancelledError:
            # Only the end of the grace period cancels a request, and this ends the request's own task.
            status = await self._refuse(problems.shutting_down(), scope, receive, send, correlation_id)
        except Exception as error:  # noqa: BLE001 - the guard of this route
            status = await self._refuse(error, scope, receive, send, correlation_id)
        else:
            status = 202
            # A message that came without a correlation id is its own conversation.
            correlation_id = given or message_id
            await send(
                {
                    "type": "http.response.start",
                    "status": 202,
                    "headers": [
                        (b"content-type", b"application/json"),
                        (b"content-length", b"%d" % len(content)),
                        (b"x-correlation-id", correlation_id.encode()),
                        *extra,
                    ],
                }
            )
            await send({"type": "http.response.body", "body": content})
            if tracing.active is not None:
                again = any(name == b"idempotent-replayed" for name, _ in extra)
                traces.submitted(message_id, perf_counter() - start, correlation_id, headers, again=again)
        self._count(status, perf_counter() - start)

    async def _take(
        self, scope: Scope, receive: Receive, headers: dict[bytes, bytes], correlation_id: str | None
    ) -> tuple[str, bytes, list[tuple[bytes, bytes]]]:
        """The message's id in hex, the body of the 202 and further headers."""
        await self._entrance.limits.enter(scope)
        _, origin = await self._entrance(scope, correlation_id)
        if headers.get(b"content-type") != b"application/json" or b"content-encoding" in headers:
            body.media_type(scope, (body.JSON,))
        key = headers.get(b"idempotency-key")
        raw = await body.read(scope, receive, parsing.MAX_MESSAGE_BYTES)
        plain = parsing.message(raw, None if key is None else key.decode("latin-1"))
        result = await self._acceptance.accept(origin, plain)
        answer = accepted(result, origin.client_id)
        extra = rate_limit.headers(scope)
        if isinstance(result, Appended) and result.replayed:
            extra.append((b"idempotent-replayed", b"true"))
        return answer.message_id.replace("-", ""), _encode(answer), extra

    async def _refuse(
        self, error: Exception, scope: Scope, receive: Receive, send: Send, correlation_id: str
    ) -> int:
        error = refusal(error)
        if problems.of(error).code == "internal_error":
            log.error("request_failed", path=PATH, exc_info=error)
        response = problems.response(error)
        response.headers["x-correlation-id"] = correlation_id
        response.raw_headers += rate_limit.headers(scope)
        await response(scope, receive, send)
        return response.status_code

    def _count(self, status: int, seconds: float) -> None:
        counter = self._counters.get(status)
        if counter is None:
            counter = self._counters[status] = self._total.labels("gateway", PATH, status)
        counter.inc()
        self._seconds.observe(seconds)
