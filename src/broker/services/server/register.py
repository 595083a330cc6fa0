"""POST /internal/messages/register."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from broker import clock, telemetry, tracing
from broker.domain import ids, submission
from broker.domain.submission import Submission
from broker.errors import ValidationError
from broker.events.acceptance import Origin
from broker.events.registration import MAX_AHEAD_MS, Registration
from broker.events.trust import Trust
from broker.services.server import wire
from broker.web import body
from broker.web.admission import Admission

MAX_BYTES = 64 * 1024

_reader = body.Reader(wire.Register)


class Register:
    """The endpoint."""

    def __init__(
        self, admission: Admission, trust: Trust, registration: Registration, partitions: int
    ) -> None:
        self._admission = admission
        self._trust = trust
        self._registration = registration
        self._partitions = partitions

    async def endpoint(self, request: Request) -> Response:
        """Queue the message, or answer as when it was queued."""
        caller = self._admission(request.scope)
        body.media_type(request.scope, (body.JSON,))
        given = _reader.decode(await body.read(request.scope, request.receive, MAX_BYTES))
        plain = submission.validate(given.sender_number, given.message_body)
        message_id = None
        if given.message_id is not None:
            message_id = ids.parse(given.message_id, self._partitions)
        origin = Origin(
            submission.client_name(given.client_id),
            f"{caller.role}:{caller.client_id}",
            bytes.fromhex(caller.fingerprint),
            self._domain(given),
            telemetry.correlation.get(),
        )
        answer = await self._register(origin, plain, message_id, _time(given.queued_at))
        return Response(msgspec.json.encode(answer), media_type=body.JSON)

    async def _register(
        self, origin: Origin, plain: Submission, message_id: bytes | None, queued_at: int | None
    ) -> wire.Registered:
        start = tracing.now()
        done = await self._registration.register(origin, plain, message_id, queued_at)
        if start and not done.replayed:
            tracing.record(
                done.message_id,
                "register",
                start,
                key=tracing.SUBMIT,
                parent=None,
                kind="server",
                client=origin.client_id,
                correlation_id=origin.correlation_id,
            )
        text = ids.text(done.message_id)
        return wire.Registered(text, origin.client_id, "queued", clock.iso(done.queued_at))

    def _domain(self, given: wire.Register) -> str | None:
        """The message's domain, by default its client's. Raises ValidationError for an unknown client."""
        client = self._trust.client(given.client_id)
        if client is None or client.status != "active":
            raise ValidationError("client_id", "is not the name of a registered client")
        return given.domain if given.domain is not None else client.domain


def _time(text: str | None) -> int | None:
    """Milliseconds of `queued_at`. Raises ValidationError."""
    if text is None:
        return None
    try:
        at = clock.parse_iso(text)
    except (ValueError, OverflowError):
        raise ValidationError("queued_at", "must be an RFC 3339 time") from None
    if not 0 <= at <= clock.now_ms() + MAX_AHEAD_MS:
        raise ValidationError("queued_at", "must not lie in the future")
    return at
