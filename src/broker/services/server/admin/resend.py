"""POST /admin/messages/{id}/resend and /admin/messages/resend."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker import clock, telemetry
from broker.domain import ids
from broker.errors import ValidationError
from broker.events.reopening import Asked
from broker.projections import listing, visibility
from broker.projections.by_hand import Done, Hand, Left, Result
from broker.projections.listing import Cursor, Filter
from broker.projections.showing import Showing
from broker.services.server import exchange
from broker.services.server.admin import resend_wire as wire
from broker.services.server.admin.parts import Parts
from broker.services.server.bearer import Caller
from broker.web import body, problems
from broker.web.parameters import Query

PROJECTION: Final = "messages"
FILTERS: Final = ("client_id", "from_date", "to_date", "search")

_one = body.Reader(wire.Resend)
_many = body.Reader(wire.ResendMany)


class Resend:
    """The endpoints."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._hand = hand(parts)
        self._bulk = Bulk(parts)

    def routes(self) -> list[Route]:
        """Both."""
        return [
            Route("/admin/messages/resend", self.many, methods=["POST"]),
            Route("/admin/messages/{message_id}/resend", self.one, methods=["POST"]),
        ]

    async def one(self, request: Request) -> Response:
        """Send one message again."""
        caller = await self._parts.admins(request.scope)
        message_id = ids.find(request.path_params["message_id"], len(self._parts.keys.partitions))
        raw = await body.read(request.scope, request.receive, exchange.MAX_BYTES)
        given = wire.Resend()
        if raw:
            body.media_type(request.scope, (body.JSON,))
            given = _one.decode(raw)
        (result,) = await self._hand.resend(
            [message_id], asked(caller), reason=given.reason, even_delivered=given.even_delivered
        )
        if isinstance(result, Left):
            raise result.error
        answer = wire.Resent(
            ids.text(message_id),
            result.client_id,
            "queued",
            result.cycle,
            str(result.position),
            result.continued,
            await visibility.wait(self._parts.database, [result.position], PROJECTION),
        )
        return exchange.answer(answer)

    async def many(self, request: Request) -> Response:
        """Send again what a filter finds, or what is named."""
        caller = await self._parts.admins(request.scope)
        given = await exchange.read(request, _many)
        wanted = msgspec.structs.replace(self._bulk.filter(given), status=given.status)
        return await self._bulk.run(
            given,
            wanted,
            lambda found: self._hand.resend(
                found, asked(caller), reason=given.reason, even_delivered=given.status == "delivered"
            ),
        )


def asked(caller: Caller) -> Asked:
    """Who asks, now, in the conversation of this request."""
    return Asked(caller.actor, clock.now_ms(), telemetry.correlation.get())


def hand(parts: Parts) -> Hand:
    """What does it to messages."""
    return Hand(parts.redis, parts.keys, parts.reopening, parts.trust, lambda: parts.models.store)


class Bulk:
    """Many messages in one call: named, or found by a filter, `limit` of them at most."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._showing = Showing(parts.sealer, parts.trust)

    def filter(self, given: wire.Selection, **more: str | None) -> Filter:
        """What is asked for; `more` are filters of its own. Raises ValidationError, also where nothing is."""
        filters = {name: getattr(given, name) for name in FILTERS}
        asked_for = [name for name, value in (filters | more).items() if value is not None]
        if given.message_ids is not None:
            asked_for += [name for name in ("all", "cursor") if getattr(given, name)]
            for name in asked_for:
                raise ValidationError(name, "must not be given together with message_ids")
        elif not asked_for and not given.all:
            raise ValidationError("all", "must be true where neither message_ids nor a filter is given")
        return self._showing.filtered(Query(filters, FILTERS), None)

    async def run(
        self,
        given: wire.Selection,
        wanted: Filter,
        work: Callable[[list[bytes]], Awaitable[Sequence[Result]]],
    ) -> Response:
        """Choose, do and tell."""
        if given.message_ids is not None:
            partitions = len(self._parts.keys.partitions)
            chosen = list(
                dict.fromkeys(ids.parse(each, partitions, "message_ids") for each in given.message_ids)
            )
            matched, exact, following = len(chosen), True, None
        else:
            at: int | Cursor = 1 if given.cursor is None else listing.cursor(given.cursor)
            per_page = 1 if given.dry_run else given.limit
            page = await listing.page(self._parts.models.store, wanted, per_page=per_page, at=at)
            chosen = [ids.parse(each.message_id) for each in page.messages]
            matched, exact, following = page.total, page.total_exact, page.next
        results = [] if given.dry_run else await work(chosen)
        done = [each.position for each in results if isinstance(each, Done)]
        answer = wire.Mended(
            matched=matched,
            matched_exact=exact,
            dry_run=given.dry_run,
            done=len(done),
            refused=[_refusal(each) for each in results if isinstance(each, Left)],
            next=None if following is None or given.dry_run else following.text(),
            visible=await visibility.wait(self._parts.database, done, PROJECTION),
        )
        return exchange.answer(answer)


def _refusal(left: Left) -> wire.Refusal:
    problem = problems.of(left.error)
    return wire.Refusal(ids.text(left.message_id), problem.code, problem.detail or problem.message)
