"""Messages: the list with its filters, and one with all that happened to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.domain import ids
from broker.errors import NotFound, ValidationError
from broker.projections import listing, timeline
from broker.projections.listing import Filter, Page
from broker.projections.queries import Listed, MessageRow
from broker.projections.showing import place
from broker.services.portal import notices, pages
from broker.services.portal.parts import Parts
from broker.services.portal.visitors import LIVE, VISITOR, Visitor
from broker.web.parameters import Query

PER_PAGE: Final = 50
_ASKED: Final = ("status", "from_date", "to_date", "search", "client_id")
_KNOWN: Final = (*_ASKED, "page", "cursor")
_READERS: Final = ("user", "admin")


class Messages:
    """The endpoints."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/messages", self.listed, methods=["GET"]),
            Route("/admin/messages", self.of_all, methods=["GET"]),
            Route("/messages/{message_id}", self.one, methods=["GET"]),
        ]

    async def listed(self, request: Request) -> Response:
        """A page of the visitor's messages, the newest first."""
        visitor = await self._parts.gate(request, *_READERS)
        return await list_page(request, self._parts, visitor, "/messages")

    async def of_all(self, request: Request) -> Response:
        """A page of everybody's messages."""
        visitor = await self._parts.gate(request, "admin")
        return await list_page(request, self._parts, visitor, "/admin/messages")

    async def one(self, request: Request) -> Response:
        """One message with its timeline; while it is open the page looks again by itself."""
        visitor = await self._parts.gate(request, *_READERS)
        Query(request, (LIVE, notices.PARAMETER))
        row = await found(self._parts, request.path_params["message_id"], visitor)
        return await message_page(request, self._parts, row)


async def list_page(request: Request, parts: Parts, visitor: Visitor, path: str) -> Response:
    """The list of messages that the visitor may see; a filter that is wrong is said beside its field."""
    given = {name: request.query_params.get(name) for name in _ASKED}
    asked = {name: value for name, value in given.items() if value}
    errors: dict[str, str] = {}
    page = Page([], 0, True, 1, PER_PAGE, 0, None)
    try:
        query = Query(request, _KNOWN)
        status = query.choice("status", ("all", *listing.STATUSES), "all")
        wanted: Filter = msgspec.structs.replace(
            parts.showing.filtered(query, visitor.clients),
            status=None if status == "all" else msgspec.convert(status, listing.Status),
        )
        page = await listing.page(parts.queries.store, wanted, per_page=PER_PAGE, at=place(query))
    except ValidationError as error:
        errors[error.field] = error.reason
    return pages.render(
        request,
        "messages.html",
        400 if errors else 200,
        base=path,
        given=given,
        asked=asked,
        page=page,
        messages=await shown(parts, page.messages),
        clients=_choices(parts, visitor),
        field_errors=errors,
    )


async def message_page(
    request: Request, parts: Parts, row: MessageRow, status: int = 200, **more: Any
) -> Response:
    """The page of one message; `more` is what it shows besides."""
    steps = await timeline.of_message(parts.queries.store, ids.parse(row.message_id))
    message = parts.showing.message(row, row.encrypted_body)
    visitor: Visitor = request.scope[VISITOR]
    # Whoever may see all of it finds what the timeline leaves out.
    history = pages.query("/audit", {"subject": row.message_id}) if visitor.clients is None else None
    shown_besides = {"plain": None, "wrong": "", "history": history} | more
    return pages.render(request, "message.html", status, message=message, steps=steps, **shown_besides)


async def found(parts: Parts, message_id: str, visitor: Visitor) -> MessageRow:
    """The message, if there is one that the visitor may see. Raises NotFound, StoreUnavailable."""
    try:
        known = ids.parse(message_id, len(parts.keys.partitions))
    except ValidationError:
        raise NotFound from None
    row = await parts.queries.message(known)
    mine = visitor.clients
    if row is None or (mine is not None and row.client_id not in mine):
        raise NotFound
    return row


async def shown(parts: Parts, messages: Sequence[Listed]) -> list[dict[str, Any]]:
    """These messages as lists show them."""
    sealed = await listing.sealed(parts.queries.store, [each.message_id for each in messages])
    return [parts.showing.message(each, sealed[each.message_id]) for each in messages]


def _choices(parts: Parts, visitor: Visitor) -> list[str]:
    """The clients that can be chosen from."""
    if visitor.clients is not None:
        return sorted(visitor.clients)
    return sorted(client.client_id for client in parts.trust.clients())
