"""GET /audit/events: the history, for auditors and admins, as an export shows it."""

from __future__ import annotations

from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from broker.projections import auditing
from broker.services.server.bearer import Bearer
from broker.services.server.reading import wire
from broker.services.server.reading.models import Models
from broker.web.parameters import Query

LIMIT: Final = 100
FILTERS: Final = (
    "from_date",
    "to_date",
    "type",
    "subject",
    "actor",
    "client_id",
    "correlation_id",
    "limit",
    "cursor",
)


class Audit:
    """The endpoint."""

    def __init__(self, bearer: Bearer, models: Models) -> None:
        self._readers = bearer.only("auditor", "admin")
        self._models = models

    async def events(self, request: Request) -> Response:
        """Events that match every filter given, the newest first."""
        await self._readers(request.scope)
        query = Query(request, FILTERS)
        limit = query.number("limit", LIMIT, most=auditing.MAX_LIMIT)
        after = query.text("cursor")
        page = await auditing.page(
            self._models.store,
            auditing.wanted_by(query),
            limit=limit,
            after=None if after is None else auditing.cursor(after),
        )
        answer = wire.AuditEvents(page.events, None if page.next is None else page.next.text())
        return Response(
            msgspec.json.encode(answer),
            headers={"cache-control": "no-store"},
            media_type="application/json",
        )
