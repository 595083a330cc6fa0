"""Rate limits in HTTP: 429 with `Retry-After`, and `RateLimit-*` on every answer where a limit applies."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker.errors import BrokerError
from broker.web import metrics, peer, problems
from broker.web.problems import Problem

_NOTED = "rate_limits"


class Rate(Protocol):
    """How much a limit allows."""

    @property
    def per_second(self) -> float: ...

    @property
    def burst(self) -> int: ...


class Limit(Protocol):
    """A limit on everybody who comes; `admit` raises an error with `retry_after` seconds."""

    @property
    def kind(self) -> str: ...

    @property
    def rate(self) -> Rate: ...

    async def admit(self, who: str) -> None: ...

    def charge(self, who: str, tokens: int) -> None: ...

    def left(self, who: str) -> tuple[int, float]: ...


class RateLimits:
    """The limits of one listener; None where there is none.

    `certificate` counts messages and `address` requests; a request of which `exempt` is true has no address.
    """

    def __init__(
        self,
        certificate: Limit | None = None,
        address: Limit | None = None,
        exempt: Callable[[Scope], bool] = lambda _: False,
    ) -> None:
        self._certificate = certificate
        self._address = address
        self._exempt = exempt

    async def enter(self, scope: Scope) -> None:
        """Count a request of its address. Raises Problem 429."""
        if self._address is not None and not self._exempt(scope):
            await _admit(self._address, peer.address(scope), scope, "requests from one address")

    async def submit(self, scope: Scope, fingerprint: str) -> None:
        """Count a message of its certificate. Raises Problem 429."""
        if self._certificate is not None:
            await _admit(self._certificate, fingerprint, scope, "messages with one certificate")

    def charge(self, fingerprint: str, messages: int) -> None:
        """Count further messages of a request that was let in: a large batch is paid off after."""
        if self._certificate is not None and messages > 0:
            self._certificate.charge(fingerprint, messages)


def refused(kind: str) -> None:
    """Count a request that the limit of this kind refused."""
    text = "Requests refused by the limit of certificates or of addresses."
    metrics.counter("broker_rate_limited_total", text, ("limit",)).labels(kind).inc()


class _Told:
    """What is left of one limit for who sent this request."""

    def __init__(self, limit: Limit, who: str) -> None:
        self.limit = limit
        self.who = who
        self.refused = False

    def left(self) -> tuple[int, float]:
        left, full_in = self.limit.left(self.who)
        # Some may have come back since it was refused, too late for it.
        return (0 if self.refused else left), full_in


def headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    """`RateLimit-*` of a request's answer: those of the limit that has least left. None without a limit."""
    told: list[_Told] = scope.get(_NOTED, [])
    if not told:
        return []
    (left, full_in), limit = min(((each.left(), each.limit) for each in told), key=lambda found: found[0][0])
    return [
        (b"ratelimit-limit", b"%d" % limit.rate.burst),
        (b"ratelimit-remaining", b"%d" % left),
        (b"ratelimit-reset", b"%d" % math.ceil(full_in)),
    ]


async def _admit(limit: Limit, who: str, scope: Scope, what: str) -> None:
    told = _Told(limit, who)
    scope.setdefault(_NOTED, []).append(told)
    try:
        await limit.admit(who)
    except BrokerError as error:
        wait: float | None = getattr(error, "retry_after", None)
        if wait is None:
            raise
        told.refused = True
        refused(limit.kind)
        raise Problem(
            "rate_limit_exceeded", f"At most {limit.rate.per_second:g} {what} a second.", retry_after=wait
        ) from None


Refuse = Callable[[Request, Exception], Awaitable[Response]]


async def _document(_: Request, error: Exception) -> Response:
    return problems.response(error)


class RateLimited:
    """Around an application: counts each request of its address, and tells what is left on every answer.

    `refuse` makes the answer to what is refused; a problem document unless given.
    """

    def __init__(self, app: ASGIApp, limits: RateLimits, refuse: Refuse | None = None) -> None:
        self.app = app
        self._limits = limits
        self._refuse = refuse or _document

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def telling(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *headers(scope)]
            await send(message)

        try:
            await self._limits.enter(scope)
        except Problem as error:
            answer = await self._refuse(Request(scope), error)
            await answer(scope, receive, telling)
            return
        await self.app(scope, receive, telling)
