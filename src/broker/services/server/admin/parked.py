"""GET /admin/parked, POST /admin/parked/resend and /admin/parked/discard: what waits for a person."""

from __future__ import annotations

from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker import clock
from broker.projections import listing, mending
from broker.projections.listing import Filter
from broker.projections.showing import Showing, place
from broker.services.server import exchange
from broker.services.server.admin import resend_wire as wire
from broker.services.server.admin.parts import Parts
from broker.services.server.admin.resend import FILTERS, Bulk, asked, hand
from broker.services.server.reading.messages import PER_PAGE
from broker.web import body
from broker.web.parameters import Query

_PARAMETERS: Final = (*FILTERS, "parked_reason", "page", "per_page", "cursor")

_resend = body.Reader(wire.ParkedSelection)
_discard = body.Reader(wire.Discard)


class Parked:
    """The endpoints."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._hand = hand(parts)
        self._bulk = Bulk(parts)
        self._showing = Showing(parts.sealer, parts.trust)

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/admin/parked", self.read, methods=["GET"]),
            Route("/admin/parked/resend", self.resend, methods=["POST"]),
            Route("/admin/parked/discard", self.discard, methods=["POST"]),
        ]

    async def read(self, request: Request) -> Response:
        """A page of parked messages, and the reasons of all."""
        await self._parts.admins(request.scope)
        query = Query(request, _PARAMETERS)
        per_page = query.number("per_page", PER_PAGE, most=listing.MAX_PER_PAGE)
        wanted = _parked(self._showing.filtered(query, None), query.text("parked_reason"))
        store = self._parts.models.store
        page = await listing.page(store, wanted, per_page=per_page, at=place(query))
        shown = [each.message_id for each in page.messages]
        sealed = await listing.sealed(store, shown)
        since = await mending.parked_since(store, shown)
        now = clock.now_ms()
        reasons = [
            wire.ParkedReason(each.reason, each.count, clock.iso(each.oldest), _seconds(now, each.oldest))
            for each in await mending.reasons(store)
        ]
        answer = wire.Parked(
            messages=[
                wire.ParkedMessage(
                    **self._showing.message(each, sealed[each.message_id]),
                    parked_at=clock.iso(since[each.message_id]),
                    parked_seconds=_seconds(now, since[each.message_id]),
                )
                for each in page.messages
            ],
            next=None if page.next is None else page.next.text(),
            **{name: getattr(page, name) for name in ("total", "total_exact", "page", "per_page", "pages")},
            oldest_seconds=max((each.oldest_seconds for each in reasons), default=None),
            reasons=reasons,
        )
        return exchange.answer(answer)

    def _chosen(self, given: wire.ParkedSelection) -> Filter:
        return _parked(self._bulk.filter(given, parked_reason=given.parked_reason), given.parked_reason)

    async def resend(self, request: Request) -> Response:
        """Give parked messages back to the workers."""
        caller = await self._parts.admins(request.scope)
        given = await exchange.read(request, _resend)
        wanted = self._chosen(given)
        return await self._bulk.run(given, wanted, lambda found: self._hand.unpark(found, asked(caller)))

    async def discard(self, request: Request) -> Response:
        """End the cycles of parked messages undelivered."""
        caller = await self._parts.admins(request.scope)
        given = await exchange.read(request, _discard)
        wanted = self._chosen(given)
        return await self._bulk.run(
            given, wanted, lambda found: self._hand.discard(found, asked(caller), given.reason)
        )


def _parked(wanted: Filter, reason: str | None) -> Filter:
    return msgspec.structs.replace(wanted, parked=True, parked_reason=reason)


def _seconds(now: int, then: int) -> float:
    # The log's clock may be a little ahead of ours.
    return max(0, now - then) / 1000
