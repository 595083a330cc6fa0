"""Headers that every answer has, whatever made it: nothing inline, nothing of others, nothing kept."""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker.services.portal.visitors import SET_COOKIE

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_ALWAYS: Final = {
    b"content-security-policy": POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": b"camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    b"cache-control": b"no-store",
}
_OVER_TLS: Final = {b"strict-transport-security": b"max-age=31536000"}


class Secured:
    """Pure ASGI middleware; what an answer says itself stands. Sets the cookie that the gate left."""

    def __init__(self, app: ASGIApp, *, secure: bool) -> None:
        self.app = app
        self._headers = _ALWAYS | (_OVER_TLS if secure else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                said = {name for name, _ in headers}
                headers += [pair for pair in self._headers.items() if pair[0] not in said]
                if SET_COOKIE in scope:
                    headers.append((b"set-cookie", scope[SET_COOKIE]))
                message["headers"] = headers
            await send(message)

        await self.app(scope, receive, secured)
