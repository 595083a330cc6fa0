"""Requests that are answered before any application sees them: what is wrong with their framing or head."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from broker import telemetry
from broker.web import metrics, problems
from broker.web.correlation import HEADER, Correlation, new_id
from broker.web.limits import Limits
from broker.web.throttle import Throttle

Headers = Sequence[tuple[bytes, bytes]]

# Two readers could take two different ones of these.
_SINGLE = {b"host", b"content-type", b"content-encoding", b"idempotency-key", b"authorization"}

log = telemetry.get_logger(__name__)
_reported = Throttle()


class Refusal(Exception):
    """The problem's code and detail. Raised inside a parser's callback it stops the parser."""

    def __init__(self, code: str, detail: str) -> None:
        self.code = code
        self.detail = detail
        super().__init__(code)


def headers_too_large(limits: Limits) -> Refusal:
    """431."""
    return Refusal("headers_too_large", f"The headers may have at most {limits.header_bytes} bytes.")


def head_size(url: bytes, headers: Headers) -> int:
    """Bytes of a head, as they count against `Limits.header_bytes`."""
    return len(url) + sum(len(name) + len(value) + 4 for name, value in headers)


def of_head(headers: Headers, version: str) -> Refusal | None:
    """What RFC 9112 (3.2) asks of the headers' names, and that none that we go by comes twice."""
    names = dict(headers)
    if b"host" not in names and version == "1.1":
        return Refusal("bad_request", "The Host header is missing.")
    if len(names) != len(headers):
        for name in _SINGLE & names.keys():
            if sum(given == name for given, _ in headers) > 1:
                return Refusal("bad_request", f"The header {name.decode()} may come only once.")
    return None


def report(refusal: Refusal, peer: Any) -> None:
    """Count it and, as far as the throttle lets through, log it."""
    metrics.refused(refusal.code)
    held = _reported.admit()
    if held is not None:
        log.warning("request_refused", peer=peer, reason=refusal.code, held_back=held)


def answer(refusal: Refusal, default_headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The whole response, after which the connection closes."""
    correlation_id = new_id()
    body = problems.document(refusal.code, refusal.detail, correlation_id=correlation_id)
    lines = [
        *default_headers,
        (b"content-type", problems.CONTENT_TYPE.encode()),
        (b"content-length", b"%d" % len(body)),
        (HEADER.encode(), correlation_id.encode()),
        (b"connection", b"close"),
    ]
    head = b"".join(b"%s: %s\r\n" % line for line in lines)
    return STATUS_LINE[problems.STATUS[refusal.code]] + head + b"\r\n" + body


async def _overload(scope: Scope, receive: Receive, send: Send) -> None:
    problem = problems.Problem("overloaded", "Too many requests are being served at once.")
    await problems.response(problem)(scope, receive, send)


overloaded: Any = Correlation(_overload)
"""The application of requests past `Limits.in_flight`."""
