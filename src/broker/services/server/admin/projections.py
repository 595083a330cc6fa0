"""GET /admin/projections: how far each read model is on each stream, and what holds it up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.projections import condition
from broker.projections.condition import Projection
from broker.services.server import exchange
from broker.services.server.admin import statuses
from broker.services.server.admin.parts import Parts
from broker.web.openapi import Operation
from broker.web.parameters import Query

PATH: Final = "/admin/projections"


class Projections(msgspec.Struct, frozen=True):
    """Every read model."""

    projections: Sequence[Projection]


class ReadProjections:
    """The endpoint."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def routes(self) -> list[Route]:
        """The one."""
        return [Route(PATH, self.read, methods=["GET"])]

    async def read(self, request: Request) -> Response:
        """How far everything is now."""
        await self._parts.admins(request.scope)
        Query(request, ())
        parts = self._parts
        answer = Projections(await condition.look(parts.models.store, parts.redis, parts.keys))
        return exchange.answer(answer)


OPERATIONS: Final = [
    Operation(
        method="get",
        path=PATH,
        summary="How far each read model is on each stream, and what holds it up.",
        answers={200: Projections},
        errors=statuses.READ,
        bearer=True,
    )
]
