"""GET /portal/messages, /portal/messages/{id} and /admin/messages.

Readers see the messages of their clients and nothing of anybody else's; admins see all. A body is shown to
admins alone, one at a time, and only after the log has it that they read it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from broker import clock, telemetry
from broker.domain import ids, submission
from broker.errors import KeyErased, KeyUnavailable, NotFound, Undecryptable, ValidationError
from broker.events.access import AccessLog
from broker.events.sealing import Plain, Sealer
from broker.events.trust import Trust
from broker.events.types import BodyRead
from broker.projections import listing, timeline
from broker.projections.listing import Cursor, Filter, Listed
from broker.projections.queries import MessageRow
from broker.services.server.bearer import Bearer, Caller
from broker.services.server.reading import wire
from broker.services.server.reading.models import Models
from broker.services.server.reading.parameters import Query
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
        self._trust = trust
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
        message_id = ids.parse(request.path_params["message_id"], self._partitions)
        row = await self._models.queries.message(message_id)
        mine = _clients(caller)
        if row is None or (mine is not None and row.client_id not in mine):
            raise NotFound
        steps = await timeline.of_message(self._models.store, message_id)
        listed = _listed(row)
        if decrypt:
            plain = self._sealer.unseal(row.client_id, message_id, row.encrypted_body)
            await self._recorded(caller, row, reason)
            number, body = plain.sender_number, plain.message_body
        else:
            number, body = self._number(listed, row.encrypted_body), wire.ENCRYPTED
        shown = wire.MessageDetail(**_fields(listed, number, body), timeline=[_step(step) for step in steps])
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
        at = _place(query)
        if (chosen := query.client()) is not None:
            # Another's client has no messages for this reader.
            clients = (chosen,) if clients is None or chosen in clients else ()
        wanted = Filter(
            clients,
            None if status == "all" else msgspec.convert(status, listing.Status),
            query.since("from_date"),
            query.until("to_date"),
            self._hashes(query.text("search"), clients),
        )
        page = await listing.page(self._models.store, wanted, per_page=per_page, at=at)
        sealed = await listing.sealed(self._models.store, [each.message_id for each in page.messages])
        answer = wire.Messages(
            [
                wire.Message(**_fields(each, self._number(each, sealed[each.message_id]), wire.ENCRYPTED))
                for each in page.messages
            ],
            page.total,
            page.total_exact,
            page.page,
            page.per_page,
            page.pages,
            None if page.next is None else page.next.text(),
        )
        return Response(_encode(answer), headers=_HEADERS, media_type="application/json")

    def _hashes(self, number: str | None, clients: Iterable[str] | None) -> tuple[bytes, ...] | None:
        """The number under every key of the clients concerned.

        Raises ValidationError, and KeyUnavailable rather than leave a client out unsaid.
        """
        if number is None:
            return None
        # A `+` that was not escaped arrives as a space.
        number = submission.sender_number(number.replace(" ", "+", 1), "search")
        names = [each.client_id for each in self._trust.clients()] if clients is None else clients
        found: list[bytes] = []
        for name in names:
            client = self._trust.client(name)
            if client is None or client.status == "erased":
                continue
            found += self._sealer.number_hashes(name, number)
        return tuple(found)

    def _number(self, message: Listed, sealed: bytes) -> str:
        try:
            plain: Plain = self._sealer.unseal(message.client_id, ids.parse(message.message_id), sealed)
        except KeyErased:
            return "[erased]"
        except KeyUnavailable:
            return "[key unavailable]"
        except Undecryptable:
            return "[unreadable]"
        return masked(plain.sender_number)


def masked(number: str) -> str:
    """`+49*********00`: what tells one's own numbers apart and dials nobody."""
    hidden = len(number) - _MASKED_FROM - _MASKED_TO
    return f"{number[:_MASKED_FROM]}{'*' * hidden}{number[-_MASKED_TO:]}"


def _clients(caller: Caller) -> tuple[str, ...] | None:
    """The clients whose messages they may see; None: all."""
    return None if caller.user.role == "admin" else tuple(caller.user.client_ids)


def _place(query: Query) -> int | Cursor:
    cursor = query.text("cursor")
    if cursor is None:
        return query.number("page", 1, most=listing.BOUND)
    if query.text("page") is not None:
        raise ValidationError("page", "must not be given together with a cursor, which knows its page")
    return listing.cursor(cursor)


def _listed(row: MessageRow) -> Listed:
    return Listed(**{name: getattr(row, name) for name in Listed.__struct_fields__})


def _fields(listed: Listed, number: str, body: str) -> dict[str, Any]:
    found = {name: getattr(listed, name) for name in Listed.__struct_fields__}
    for name in ("queued_at", "delivered_at", "failed_at", "next_attempt_at"):
        found[name] = None if found[name] is None else clock.iso(found[name])
    return found | {"sender_number": number, "message_body": body}


def _step(step: timeline.Step) -> wire.Step:
    found = msgspec.structs.asdict(step)
    found["at"] = clock.iso(step.at)
    if step.next_attempt_at is not None:
        found["next_attempt_at"] = clock.iso(step.next_attempt_at)
    return wire.Step(**found)
