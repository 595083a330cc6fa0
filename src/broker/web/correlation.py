"""The correlation id of a request: the client's if it is one, else ours; echoed, and in every log line."""

from __future__ import annotations

import re
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker import telemetry

HEADER = "x-correlation-id"
_HEADER = HEADER.encode()
_acceptable = re.compile(rb"[A-Za-z0-9._-]{1,64}").fullmatch


def new_id() -> str:
    """32 hex characters."""
    return uuid.uuid4().hex


class Correlation:
    """Pure ASGI middleware; must be the outermost, so that every answer carries the header."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        value = b""
        for name, given in scope["headers"]:
            if name == _HEADER:
                value = given
        if not value or _acceptable(value) is None:
            value = new_id().encode()

        async def echo(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (_HEADER, value)]
            await send(message)

        # Each request runs in a task, and so in a context, of its own: nothing to reset on a kept connection.
        telemetry.correlation.set(value.decode("ascii"))
        await self.app(scope, receive, echo)
