"""PUT /internal/messages/{id}/status and POST /internal/messages/status."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from broker import clock, telemetry
from broker.domain import ids
from broker.events.open_messages import FinishedMessage
from broker.services.server import wire
from broker.services.server.outcomes import Known, Outcomes, Report
from broker.web import body
from broker.web.admission import Admission
from broker.web.identity import Identity

MAX_BYTES = 64 * 1024

_update = body.Reader(wire.StatusUpdate)
_named = body.Reader(wire.MessageStatusUpdate)


class UpdateStatus:
    """The endpoints."""

    def __init__(self, admission: Admission, outcomes: Outcomes, partitions: int) -> None:
        self._admission = admission
        self._outcomes = outcomes
        self._partitions = partitions

    async def put(self, request: Request) -> Response:
        """The message is named by the path."""
        caller, raw = await self._read(request)
        return await self._answer(request.path_params["message_id"], _update.decode(raw), caller)

    async def post(self, request: Request) -> Response:
        """The message is named by the body."""
        caller, raw = await self._read(request)
        update = _named.decode(raw)
        return await self._answer(update.message_id, update, caller)

    async def _read(self, request: Request) -> tuple[Identity, bytes]:
        caller = self._admission(request.scope)
        body.media_type(request.scope, (body.JSON,))
        return caller, await body.read(request.scope, request.receive, MAX_BYTES)

    async def _answer(self, message_id: str, update: wire.StatusUpdate, caller: Identity) -> Response:
        """Raises ValidationError, NotFound, Conflict, LogUnavailable."""
        report = Report(
            ids.find(message_id, self._partitions),
            f"{caller.role}:{caller.client_id}",
            telemetry.correlation.get(),
            update.attempt_count,
            update.error_message,
        )
        known: Known
        if update.status == "queued":
            known = await self._outcomes.requeue(report)
        else:
            known = await self._outcomes.finish(report, update.status)
        return Response(msgspec.json.encode(_shown(known)), media_type=body.JSON)


def _shown(known: Known) -> wire.StatusAnswer:
    text = ids.text(known.message_id)
    if isinstance(known, FinishedMessage):
        at = clock.iso(known.at_ms) if known.outcome == "delivered" else None
        return wire.StatusAnswer(text, "delivered" if at else "failed", known.attempts, at, None)
    due = None if known.due_ms is None else clock.iso(known.due_ms)
    return wire.StatusAnswer(text, "queued", known.attempts, None, due)
