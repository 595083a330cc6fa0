"""One message by an admin's hand: its body shown, on record; sent again."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker import clock, telemetry
from broker.domain import ids
from broker.errors import BrokerError, KeyErased, ValidationError
from broker.events.reopening import Asked
from broker.events.types import BodyRead
from broker.projections import visibility
from broker.projections.by_hand import Hand, Left
from broker.services.portal import forms, pages
from broker.services.portal.messages import found, message_page
from broker.services.portal.parts import Parts
from broker.web import problems

_MAX_REASON: Final = 512


class OneMessage:
    """The endpoints."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._hand = Hand(parts.redis, parts.keys, parts.reopening, parts.trust, lambda: parts.queries.store)

    def routes(self) -> list[Route]:
        """Both."""
        return [
            Route("/admin/messages/{message_id}/decrypt", self.decrypt, methods=["POST"]),
            Route("/admin/messages/{message_id}/resend", self.resend, methods=["POST"]),
        ]

    async def decrypt(self, request: Request) -> Response:
        """The body, to an admin who says why, once the log has it that they read it."""
        visitor = await self._parts.gate(request, "admin")
        form = await forms.read(request, visitor.ticket, ("reason",))
        row = await found(self._parts, request.path_params["message_id"], visitor)
        reason = form.optional("reason")
        try:
            if reason is None or len(reason) > _MAX_REASON:
                raise ValidationError("reason", f"must be said, in at most {_MAX_REASON} characters")
            plain = self._parts.sealer.unseal(row.client_id, ids.parse(row.message_id), row.encrypted_body)
        except (ValidationError, KeyErased) as error:
            return await self._again(request, row.message_id, error)
        event = BodyRead(row.message_id, row.client_id, reason)
        await self._parts.accounts.access.append(
            (visitor.actor, event), actor=visitor.actor, correlation_id=telemetry.correlation.get()
        )
        return await message_page(request, self._parts, row, plain=plain)

    async def resend(self, request: Request) -> Response:
        """Another cycle; of a parked message, its own goes on."""
        visitor = await self._parts.gate(request, "admin")
        form = await forms.read(request, visitor.ticket, ("reason", "even_delivered"))
        row = await found(self._parts, request.path_params["message_id"], visitor)
        reason = form.optional("reason")
        if reason is not None and len(reason) > _MAX_REASON:
            error = ValidationError("reason", f"must have at most {_MAX_REASON} characters")
            return await self._again(request, row.message_id, error)
        (result,) = await self._hand.resend(
            [ids.parse(row.message_id)],
            Asked(visitor.actor, clock.now_ms(), telemetry.correlation.get()),
            reason=reason,
            even_delivered=form.text("even_delivered") == "yes",
        )
        if isinstance(result, Left):
            return await self._again(request, row.message_id, result.error)
        seen = await visibility.wait(self._parts.queries, [result.position], "messages")
        return pages.see(f"/messages/{row.message_id}", "resent" if seen else "later")

    async def _again(self, request: Request, message_id: str, error: BrokerError) -> Response:
        problem = problems.of(error)
        visitor = await self._parts.gate(request, "admin")
        row = await found(self._parts, message_id, visitor)
        status = problems.STATUS.get(problem.code, 500)
        return await message_page(request, self._parts, row, status, wrong=problem.detail or problem.message)
