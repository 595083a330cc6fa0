"""The read models, and the streams they are made of."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.events import inspection
from broker.projections import condition
from broker.services.portal import pages
from broker.services.portal.parts import Parts


class LogPages:
    """The endpoints."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def routes(self) -> list[Route]:
        """Both."""
        return [
            Route("/admin/projections", self.projections, methods=["GET"]),
            Route("/admin/streams", self.streams, methods=["GET"]),
        ]

    async def projections(self, request: Request) -> Response:
        """How far each read model is, and what holds it up."""
        await self._parts.gate(request, "admin")
        parts = self._parts
        found = await condition.look(parts.queries.store, parts.redis, parts.keys)
        return pages.render(request, "projections.html", projections=found)

    async def streams(self, request: Request) -> Response:
        """Lengths, memory, groups and what is open; nothing is scanned."""
        await self._parts.gate(request, "admin")
        found = await inspection.streams(self._parts.redis, self._parts.keys, count_parked=False)
        return pages.render(request, "streams.html", streams=found)
