"""The correlation id of a request: the client's if it is one, else ours; echoed, and in every log line."""

from __future__ import annotations

import random
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker import telemetry

HEADER = "x-correlation-id"
_HEADER = HEADER.encode()
_acceptable = re.compile(rb"[A-Za-z0-9._-]{1,64}").fullmatch


def new_id() -> str:
    """32 hex characters."""
    # No secret, and every request needs one: a system call would cost as much as sealing does.
    return f"{random.getrandbits(128):032x}"


def given(header: bytes | None) -> str | None:
    """The correlation id that the header's value brings, None without an acceptable one."""
    return None if header is None or _acceptable(header) is None else header.decode("ascii")


def of(header: bytes | None) -> str:
    """The correlation id of a request whose header has this value."""
    return given(header) or new_id()


class Correlation:
    """Pure ASGI middleware; must be the outermost, so that every answer carries the header."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        found = None
        for name, header in scope["headers"]:
            if name == _HEADER:
                found = header
        correlation_id = of(found)
        value = correlation_id.encode()

        async def echo(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (_HEADER, value)]
            await send(message)

        # Each request runs in a task, and so in a context, of its own: nothing to reset on a kept connection.
        telemetry.correlation.set(correlation_id)
        await self.app(scope, receive, echo)
