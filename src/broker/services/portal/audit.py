"""The history, for auditors and admins: searched, and one event with what proves it."""

from __future__ import annotations

from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.errors import NotFound, ValidationError
from broker.events import positions, types
from broker.projections import auditing
from broker.services.portal import pages
from broker.services.portal.admin import lists
from broker.services.portal.parts import Parts
from broker.web.parameters import Query

PER_PAGE: Final = 100
_FILTERS: Final = ("from_date", "to_date", "type", "subject", "actor", "client_id", "correlation_id")
_READERS: Final = ("auditor", "admin")


class Audit:
    """The endpoints."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def routes(self) -> list[Route]:
        """Both."""
        return [
            Route("/audit", self.search, methods=["GET"]),
            Route("/audit/{position}", self.one, methods=["GET"]),
        ]

    async def search(self, request: Request) -> Response:
        """Events that match every filter given, the newest first."""
        await self._parts.gate(request, *_READERS)
        page, errors = auditing.Page([], None), dict[str, str]()
        try:
            query = Query(request, (*_FILTERS, "cursor"))
            after = query.text("cursor")
            page = await auditing.page(
                self._parts.queries.store,
                auditing.wanted_by(query),
                limit=PER_PAGE,
                after=None if after is None else auditing.cursor(after),
            )
        except ValidationError as error:
            errors = lists.shown(error)
        return pages.render(
            request,
            "audit.html",
            400 if errors else 200,
            events=page.events,
            next=None if page.next is None else page.next.text(),
            asked=lists.asked(request, _FILTERS),
            types=sorted(types.ALL),
            field_errors=errors,
        )

    async def one(self, request: Request) -> Response:
        """One event, with its hash and that of the one before it."""
        await self._parts.gate(request, *_READERS)
        try:
            position = positions.parse(request.path_params["position"])
        except ValidationError:
            raise NotFound from None
        event = await auditing.one(self._parts.queries.store, position)
        if event is None:
            raise NotFound
        data = msgspec.json.format(msgspec.json.encode(event.data), indent=2).decode()
        return pages.render(request, "event.html", event=event, data=data)
