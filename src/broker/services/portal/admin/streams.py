"""The streams of the log, and who reads them."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.events import inspection
from broker.services.portal import pages
from broker.services.portal.parts import Parts

MOST: Final = 200
"""Consumers that are shown, those with most in hand first."""


class Streams:
    """The endpoint."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def routes(self) -> list[Route]:
        """The one."""
        return [Route("/admin/streams", self.read, methods=["GET"])]

    async def read(self, request: Request) -> Response:
        """Lengths, memory, groups and what is open; nothing is scanned."""
        await self._parts.gate(request, "admin")
        redis, keys = self._parts.redis, self._parts.keys
        found = await inspection.streams(redis, keys, count_parked=False)
        consumers = await inspection.consumers(redis, found, keys)
        return pages.render(request, "streams.html", streams=found, consumers=consumers, most=MOST)
