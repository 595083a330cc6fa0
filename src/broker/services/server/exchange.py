"""Reading a request's JSON and answering with JSON that nobody on the way may keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from broker.events.login_throttle import Throttled
from broker.web import body
from broker.web.problems import Problem

MAX_BYTES: Final = 64 * 1024
# RFC 6749, section 5.1, asks it for tokens; it is right for everything that people see.
UNKEPT: Final = {"cache-control": "no-store"}

_encode = msgspec.json.Encoder().encode


async def read(request: Request, reader: body.Reader[body.T], limit: int = MAX_BYTES) -> body.T:
    """The body as `reader` reads it, at most `limit` bytes. Raises Problem 400, 413, 415."""
    body.media_type(request.scope, (body.JSON,))
    return reader.decode(await body.read(request.scope, request.receive, limit))


def answer(
    content: msgspec.Struct, status: int = 200, *, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer with this body."""
    return Response(_encode(content), status, {**UNKEPT, **(headers or {})}, media_type=body.JSON)


def later(error: Throttled) -> Problem:
    """The 429 for somebody who tries to sign in too often."""
    return Problem("rate_limit_exceeded", str(error), retry_after=error.retry_after)
