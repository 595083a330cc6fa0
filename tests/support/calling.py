"""HTTPS calls to a role under test, over real connections with real certificates."""

from __future__ import annotations

import ssl

import msgspec

from support import contract
from support.serving import Answered, Raw, connection

NUMBER = "+4915200000000"
MESSAGE = {"sender_number": NUMBER, "message_body": "hello"}


class Caller:
    """Makes requests to one port with one client certificate; a connection each unless `raw` is given.

    Every answer is held to what the OpenAPI document says of it.
    """

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self.port = port
        self.context = context

    async def request(
        self, method: str, path: str, body=None, headers=None, raw: Raw | None = None
    ) -> Answered:
        """`body` as bytes, or anything that is encoded as JSON."""
        content = body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)
        lines = {"host": "localhost", "content-length": str(len(content))}
        if body is not None:
            lines["content-type"] = "application/json"
        lines |= headers or {}
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n"
        if raw is not None:
            answer = await self._ask(raw, head.encode("latin-1") + content)
        else:
            async with connection(self.port, self.context) as opened:
                answer = await self._ask(opened, head.encode("latin-1") + content)
        contract.hold(method, path, answer)
        return answer

    async def _ask(self, raw: Raw, request: bytes) -> Answered:
        await raw.send(request)
        return await raw.answer()

    async def get(self, path: str, **options) -> Answered:
        return await self.request("GET", path, **options)

    async def post(self, path: str, body=None, **options) -> Answered:
        return await self.request("POST", path, body, **options)

    async def submit(self, body=None, **options) -> Answered:
        """POST /api/v1/messages."""
        return await self.post("/api/v1/messages", MESSAGE if body is None else body, **options)
