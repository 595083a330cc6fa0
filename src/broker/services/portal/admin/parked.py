"""What waits for a person: why, how many, since when; given back or discarded, after a look at how many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker import clock, telemetry
from broker.domain import ids
from broker.errors import ValidationError
from broker.events.reopening import Asked
from broker.projections import listing, mending, visibility
from broker.projections.by_hand import Done, Hand, Left, Result
from broker.projections.listing import Cursor, Filter, Page
from broker.projections.showing import place
from broker.services.portal import forms, pages
from broker.services.portal.admin import lists
from broker.services.portal.forms import Form
from broker.services.portal.messages import shown
from broker.services.portal.parts import Parts
from broker.services.portal.visitors import Visitor
from broker.web import problems
from broker.web.parameters import Query

PATH: Final = "/admin/parked"
MOST: Final = 5_000
"""Messages that one form changes; the rest after it, by another."""
_AT_ONCE: Final = 200
_FILTERS: Final = ("client_id", "parked_reason", "from_date", "to_date", "search")
_ACTIONS: Final = ("resend", "discard")
_MAX_REASON: Final = 512


class Parked:
    """The endpoints."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._hand = Hand(parts.redis, parts.keys, parts.reopening, parts.trust, lambda: parts.queries.store)

    def routes(self) -> list[Route]:
        """Both."""
        return [
            Route(PATH, self.read, methods=["GET"]),
            Route(PATH, self.mend, methods=["POST"]),
        ]

    async def read(self, request: Request) -> Response:
        """The reasons of all, and a page of those that match."""
        await self._parts.gate(request, "admin")
        return await self._page(request)

    async def mend(self, request: Request) -> Response:
        """First how many it would be; then, once somebody said so, what came of it."""
        visitor = await self._parts.gate(request, "admin")
        form = await forms.read(
            request, visitor.ticket, ("action", "all", "sure", "reason", *_FILTERS), ("message_ids",)
        )
        try:
            action, reason = _action(form), form.optional("reason")
            if action == "discard" and form.text("sure") and (reason is None or len(reason) > _MAX_REASON):
                raise ValidationError("reason", f"must be said, in at most {_MAX_REASON} characters")
            chosen = self._chosen(form)
            matching = await self._count(form) if not chosen else len(chosen)
        except ValidationError as error:
            return await self._page(request, problems.of(error))
        if not form.text("sure"):
            given = {name: form.text(name) for name in _FILTERS}
            return pages.render(
                request,
                "parked_sure.html",
                action=action,
                count=matching,
                most=MOST,
                given=given,
                chosen=[ids.text(each) for each in chosen],
            )
        results = await self._do(form, action, chosen, visitor, reason)
        done = [each.position for each in results if isinstance(each, Done)]
        left = [each for each in results if isinstance(each, Left)]
        await visibility.wait(self._parts.queries, done, "messages")
        told = [(ids.text(each.message_id), problems.of(each.error)) for each in left[:50]]
        return pages.render(
            request, "parked_done.html", action=action, done=len(done), left=len(left), told=told
        )

    async def _do(
        self, form: Form, action: str, chosen: list[bytes], visitor: Visitor, reason: str | None
    ) -> list[Result]:
        asked = Asked(visitor.actor, clock.now_ms(), telemetry.correlation.get())

        async def some(message_ids: Sequence[bytes]) -> list[Result]:
            if action == "resend":
                return await self._hand.unpark(message_ids, asked)
            return await self._hand.discard(message_ids, asked, reason or "")

        if chosen:
            return await some(chosen)
        found: list[Result] = []
        wanted, at = self._wanted(form), None
        while len(found) < MOST:
            page = await self._matching(wanted, _AT_ONCE, at)
            found += await some([ids.parse(each.message_id) for each in page.messages])
            at = page.next
            if at is None:
                break
        return found

    def _chosen(self, form: Form) -> list[bytes]:
        """The messages that were ticked; none where all that match are meant. Raises ValidationError."""
        if form.text("all") == "yes":
            return []
        named = form.many("message_ids")
        if not named:
            raise ValidationError("message_ids", "must be ticked, one at least")
        return list(
            dict.fromkeys(ids.parse(each, len(self._parts.keys.partitions), "message_ids") for each in named)
        )

    def _wanted(self, form: Form) -> Filter:
        given = {name: form.optional(name) for name in _FILTERS}
        return self._filter(Query(given, _FILTERS))

    async def _count(self, form: Form) -> int:
        return (await self._matching(self._wanted(form), 1, None)).total

    async def _matching(self, wanted: Filter, per_page: int, at: Cursor | None) -> Page:
        return await listing.page(self._parts.queries.store, wanted, per_page=per_page, at=at or 1)

    def _filter(self, query: Query) -> Filter:
        wanted = self._parts.showing.filtered(query, None)
        return msgspec.structs.replace(wanted, parked=True, parked_reason=query.text("parked_reason"))

    async def _page(self, request: Request, wrong: problems.Problem | None = None) -> Response:
        store = self._parts.queries.store
        page, errors = Page([], 0, True, 1, lists.PER_PAGE, 0, None), {}
        try:
            query = Query(request, (*_FILTERS, *lists.PAGING))
            page = await listing.page(store, self._filter(query), per_page=lists.PER_PAGE, at=place(query))
        except ValidationError as error:
            errors = lists.shown(error)
        status = problems.STATUS[wrong.code] if wrong else 400 if errors else 200
        now = clock.now_ms()
        return pages.render(
            request,
            "parked.html",
            status,
            reasons=[
                (each.reason, each.count, max(0, now - each.oldest)) for each in await mending.reasons(store)
            ],
            page=page,
            messages=await shown(self._parts, page.messages),
            asked=lists.asked(request, _FILTERS),
            wrong=wrong,
            field_errors=errors,
        )


def _action(form: Form) -> str:
    if form.text("action") not in _ACTIONS:
        raise ValidationError("action", f"must be one of {', '.join(_ACTIONS)}")
    return form.text("action")
