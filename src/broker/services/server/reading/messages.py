"""GET /portal/messages, /portal/messages/{id} and /admin/messages.

Readers see the messages of their clients and nothing of anybody else's; admins see all. A body is shown to
admins alone, one at a time, and only after the log has it that they read it.
"""

from __future__ import annotations

from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from broker import clock, telemetry
from broker.domain import ids
from broker.errors import NotFound
from broker.events.access import AccessLog
from broker.events.sealing import Sealer
from broker.events.trust import Trust
from broker.events.types import BodyRead
from broker.projections import listing, timeline
from broker.projections.queries import MessageRow
from broker.projections.showing import Showing, fields, place
from broker.services.server.bearer import Bearer, Caller
from broker.services.server.reading import wire
from broker.services.server.reading.models import Models
from broker.web.parameters import Query
from broker.web.problems import Problem

PER_PAGE: Final = 50
FILTERS: Final = ("status", "from_date", "to_date", "search", "client_id", "page", "per_page", "cursor")
_MASKED_FROM, _MASKED_TO = 3, 2
_encode = msgspec.json.Encoder().encode
_HEADERS: Final = {"cache-control": "no-store"}


class Messages:
    """The endpoints."""

    def __init__(
        self,
        bearer: Bearer,
        models: Models,
        sealer: Sealer,
        trust: Trust,
        access: AccessLog,
        *,
        partitions: int,
    ) -> None:
        self._readers = bearer.only("user", "admin")
        self._admins = bearer.only("admin")
        self._models = models
        self._sealer = sealer
        self._showing = Showing(sealer, trust)
        self._access = access
        self._partitions = partitions

    async def of_reader(self, request: Request) -> Response:
        """The messages of the reader's clients; an admin's are everybody's."""
        caller = await self._readers(request.scope)
        return await self._page(request, _clients(caller))

    async def of_all(self, request: Request) -> Response:
        """Everybody's messages."""
        await self._admins(request.scope)
        return await self._page(request, None)

    async def one(self, request: Request) -> Response:
        """One message with its timeline; `decrypt=true` shows its body and number to an admin."""
        caller = await self._readers(request.scope)
        query = Query(request, ("decrypt", "reason"))
        decrypt, reason = query.flag("decrypt"), query.text("reason")
        if decrypt and caller.user.role != "admin":
            raise Problem("forbidden", "Only an admin may decrypt a message.")
        message_id = ids.find(request.path_params["message_id"], self._partitions)
        row = await self._models.queries.message(message_id)
        mine = _clients(caller)
        if row is None or (mine is not None and row.client_id not in mine):
            raise NotFound
        steps = await timeline.of_message(self._models.store, message_id)
        if decrypt:
            plain = self._sealer.unseal(row.client_id, message_id, row.encrypted_body)
            await self._recorded(caller, row, reason)
            found = fields(row, plain.sender_number, plain.message_body)
        else:
            found = self._showing.message(row, row.encrypted_body)
        shown = wire.MessageDetail(**found, timeline=[_step(step) for step in steps])
        return Response(_encode(shown), headers=_HEADERS, media_type="application/json")

    async def _recorded(self, caller: Caller, row: MessageRow, reason: str | None) -> None:
        """The reading is durable before anything is shown."""
        event = BodyRead(row.message_id, row.client_id, reason)
        await self._access.append(
            (caller.actor, event), actor=caller.actor, correlation_id=telemetry.correlation.get()
        )

    async def _page(self, request: Request, clients: tuple[str, ...] | None) -> Response:
        query = Query(request, FILTERS)
        status = query.choice("status", ("all", *listing.STATUSES), "all")
        per_page = query.number("per_page", PER_PAGE, most=listing.MAX_PER_PAGE)
        wanted = msgspec.structs.replace(
            self._showing.filtered(query, clients),
            status=None if status == "all" else msgspec.convert(status, listing.Status),
        )
        page = await listing.page(self._models.store, wanted, per_page=per_page, at=place(query))
        sealed = await listing.sealed(self._models.store, [each.message_id for each in page.messages])
        answer = wire.Messages(
            [wire.Message(**self._showing.message(each, sealed[each.message_id])) for each in page.messages],
            page.total,
            page.total_exact,
            page.page,
            page.per_page,
            page.pages,
            None if page.next is None else page.next.text(),
        )
        return Response(_encode(answer), headers=_HEADERS, media_type="application/json")


def _clients(caller: Caller) -> tuple[str, ...] | None:
    """The clients whose messages they may see; None: all."""
    return None if caller.user.role == "admin" else tuple(caller.user.client_ids)


def _step(step: timeline.Step) -> wire.Step:
    found = msgspec.structs.asdict(step)
    found["at"] = clock.iso(step.at)
    if step.next_attempt_at is not None:
        found["next_attempt_at"] = clock.iso(step.next_attempt_at)
    return wire.Step(**found)
