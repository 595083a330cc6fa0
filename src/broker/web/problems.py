"""Errors as RFC 9457 problem documents, the same from every surface and layer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker import telemetry
from broker.errors import BrokerError, ValidationError

CONTENT_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:broker:problem:"
RETRY_AFTER_SECONDS = 1

log = telemetry.get_logger(__name__)

# The status of every code; what is not named here is a failure of ours, 500.
STATUS: dict[str, int] = {
    "validation_error": 400,
    "malformed_json": 400,
    "bad_request": 400,
    "unauthorized": 401,
    "client_certificate_required": 401,
    "forbidden": 403,
    "certificate_revoked": 403,
    "certificate_expired": 403,
    "certificate_purpose": 403,
    "client_unknown": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "conflict": 409,
    "idempotency_conflict": 409,
    "history_altered": 409,
    "history_gap": 409,
    "digest_invalid": 409,
    "archive_damaged": 409,
    "unknown_event": 409,
    "key_erased": 410,
    "body_too_large": 413,
    "uri_too_long": 414,
    "unsupported_media_type": 415,
    "rate_limit_exceeded": 429,
    "headers_too_large": 431,
    "internal_error": 500,
    "overloaded": 503,
    "shutting_down": 503,
    "log_unavailable": 503,
    "log_full": 503,
    "trust_unproved": 503,
    "key_unavailable": 503,
    "ca_unavailable": 503,
    "inspection_only": 503,
    "store_unavailable": 503,
    "identity_provider_unavailable": 503,
    "archive_unavailable": 503,
    "lease_lost": 503,
    "unsafe_redis": 503,
}
# Codes that Starlette's own exceptions get by their status.
_BY_STATUS = {400: "bad_request", 401: "unauthorized", 403: "forbidden", 503: "overloaded"} | {
    STATUS[code]: code
    for code in (
        "not_found",
        "method_not_allowed",
        "request_timeout",
        "conflict",
        "body_too_large",
        "unsupported_media_type",
        "rate_limit_exceeded",
    )
}


class Detail(msgspec.Struct, frozen=True):
    """One thing that is wrong with a request: which field, and why."""

    field: str
    reason: str


class Document(msgspec.Struct, frozen=True):
    """The body of every error answer. `detail` and `message` are one sentence under both names in use."""

    type: str
    title: str
    status: int
    detail: str
    error: str
    message: str
    details: Sequence[Detail]
    correlation_id: str | None


class Problem(BrokerError):
    """The request cannot be served."""

    def __init__(
        self,
        code: str,
        detail: str = "",
        *,
        details: Sequence[Detail] = (),
        headers: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.code = code
        self.details = tuple(details)
        self.headers = dict(headers or {})
        self.retry_after = retry_after
        super().__init__(detail)

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


_encode = msgspec.json.Encoder().encode


def document(
    code: str,
    detail: str = "",
    *,
    status: int | None = None,
    details: Sequence[Detail] = (),
    correlation_id: str | None = None,
) -> bytes:
    """The encoded document. Without a detail it is the status's own phrase."""
    status = status or STATUS.get(code, 500)
    title = HTTPStatus(status).phrase
    text = detail or f"{title}."
    correlation_id = correlation_id or telemetry.correlation.get()
    return _encode(Document(TYPE_PREFIX + code, title, status, text, code, text, details, correlation_id))


def of(error: BaseException) -> Problem:
    """Any error as the problem that its client sees; a failure of ours says nothing of its inside."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, ValidationError):
        detail = Detail(error.field, error.reason)
        return Problem("validation_error", f"{error.field}: {error.reason}", details=[detail])
    if isinstance(error, HTTPException):
        return _of_http(error)
    if isinstance(error, BrokerError):
        if STATUS.get(error.code, 500) < 500:
            return Problem(error.code, str(error))
        if error.code in STATUS:
            return Problem(error.code, error.message, retry_after=getattr(error, "retry_after", None))
    return Problem("internal_error", "The broker failed to serve this request.")


def response(error: BaseException) -> Response:
    """The problem document of any error; 503 and 429 always say when to come back."""
    problem = of(error)
    status = STATUS.get(problem.code, 500)
    headers = dict(problem.headers)
    if problem.retry_after is not None or status in {429, 503}:
        seconds = RETRY_AFTER_SECONDS if problem.retry_after is None else problem.retry_after
        headers.setdefault("retry-after", str(max(1, -int(-seconds // 1))))
    body = document(problem.code, problem.detail, status=status, details=problem.details)
    return Response(body, status, headers, media_type=CONTENT_TYPE)


async def _handle(request: Request, error: Exception) -> Response:
    if of(error).code == "internal_error":
        log.error("request_failed", path=request.url.path, exc_info=error)
    return response(error)


async def _render(_request: Request, error: Exception) -> Response:
    # Starlette raises it again after this, so the Guard logs it.
    return response(error)


async def _nobody(_request: Request, _error: Exception) -> None:
    """Starlette sends nothing then; its last resort would be a 500, which is counted."""


def handlers() -> dict[Any, Any]:
    """The exception handlers that every Starlette application of ours takes."""
    return {ClientDisconnected: _nobody, BrokerError: _handle, HTTPException: _handle, Exception: _render}


def shutting_down() -> Problem:
    """For a request that the end of the grace period cut off."""
    return Problem("shutting_down", "The process stopped; whether this was done is unknown.")


class Guard:
    """Whatever escapes an application is logged once, with its traceback, and answered with a 500."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except ClientDisconnected:
            return
        except asyncio.CancelledError:
            # Only the end of the grace period cancels a request, and this ends the request's own task.
            if not started:
                await response(shutting_down())(scope, receive, send)
        except Exception as error:
            if of(error).code == "internal_error":
                log.error("request_failed", path=scope["path"], exc_info=error)
            if not started:
                await response(error)(scope, receive, send)


class ClientDisconnected(Exception):
    """The client went away before its request was complete; there is nobody to answer."""


def _of_http(error: HTTPException) -> Problem:
    code = _BY_STATUS.get(error.status_code)
    phrase = HTTPStatus(error.status_code).phrase
    detail = f"{phrase}." if error.detail == phrase else error.detail
    if code is None or STATUS[code] != error.status_code:
        code = "bad_request" if error.status_code < 500 else "internal_error"
    return Problem(code, detail, headers=error.headers)
