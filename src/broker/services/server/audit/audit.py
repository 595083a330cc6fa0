"""/audit/export, /audit/digests, /audit/proof, /audit/verify: history that proves itself, for auditors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from broker import telemetry
from broker.errors import NotFound
from broker.events import (
    digests_making,
    exported,
    exported_file,
    exported_formats,
    exported_serving,
    positions,
)
from broker.events.digests import Signed
from broker.events.exported_session import Exports
from broker.projections import auditing
from broker.services.server import exchange
from broker.services.server.audit import wire
from broker.services.server.bearer import Bearer
from broker.web.parameters import Query

EXPORT: Final = (
    "format", "from_date", "to_date", "type", "subject", "actor", "client_id", "correlation_id", "digest",
    "after",
)  # fmt: skip
LIMIT: Final = 100
MAX_LIMIT: Final = 1000
MAX_NUMBER: Final = 999_999_999
MAX_CHECKED: Final = 24
"""Digests whose events one request checks again."""


class Audit:
    """The endpoints. `make` opens what begins exports, when it is first asked for."""

    def __init__(self, bearer: Bearer, make: Callable[[], Exports], public_key: Callable[[], str]) -> None:
        self._auditors = bearer.only("auditor", "admin")
        self._make = make
        self._public_key = public_key
        self._made: Exports | None = None

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/audit/export", self.export, methods=["GET"]),
            Route("/audit/digests", self.digests, methods=["GET"]),
            Route("/audit/digests", self.sign, methods=["POST"]),
            Route("/audit/proof", self.proof, methods=["GET"]),
            Route("/audit/verify", self.verify, methods=["GET"]),
        ]

    @property
    def _exports(self) -> Exports:
        """Raises DigestKeyError, KeyUnavailable."""
        if self._made is None:
            self._made = self._make()
        return self._made

    async def export(self, request: Request) -> Response:
        """Events in the form that verifies, streamed; recorded before the first is sent."""
        caller = await self._auditors(request.scope)
        query = Query(request, EXPORT)
        form = query.choice("format", exported_formats.FORMATS, "jsonl")
        named, after = query.text("digest"), query.text("after")
        position = None if after is None else positions.parse(after, "after")
        made = exported_formats.named(form)
        if position is not None:
            exported_formats.check_resumable(made, form)
        begun = await self._exports.begin(
            auditing.exported_by(query),
            form,
            actor=caller.actor,
            correlation_id=telemetry.correlation.get(),
            digest=None if named is None else query.number("digest", 1, most=MAX_NUMBER),
            after=position,
        )
        name = f"history-{begun.digest}.{form}"
        return StreamingResponse(
            exported_serving.lines(begun, made, position),
            media_type=made.media_type,
            headers={
                "cache-control": "no-store",
                "content-disposition": f'attachment; filename="{name}"',
                "x-export-digest": str(begun.digest),
            },
        )

    async def digests(self, request: Request) -> Response:
        """The signed digests and the key; as JSON lines they are what the verifier takes."""
        await self._auditors(request.scope)
        query = Query(request, ("after", "limit", "format"))
        after = query.number("after", 0, least=0, most=MAX_NUMBER)
        limit = query.number("limit", LIMIT, most=MAX_LIMIT)
        signed = await digests_making.recorded(self._exports.source)
        if query.choice("format", ("json", "jsonl"), "json") == "jsonl":
            lines = b"".join(exported_file.digest_line(one) + b"\n" for one in signed[after:])
            return Response(lines, media_type="application/x-ndjson", headers={"cache-control": "no-store"})
        page = signed[after : after + limit]
        more = after + limit if after + limit < len(signed) else None
        return exchange.answer(wire.Digests(self._public_key(), [_shown(one) for one in page], more))

    async def sign(self, request: Request) -> Response:
        """A digest of everything up to now; the newest where nothing has happened since."""
        caller = await self._auditors(request.scope)
        made = await self._exports.digester.make(
            actor=caller.actor, correlation_id=telemetry.correlation.get()
        )
        return exchange.answer(_shown(made), 201)

    async def proof(self, request: Request) -> Response:
        """One event with the proof that a digest vouches for it."""
        await self._auditors(request.scope)
        query = Query(request, ("position",))
        position = positions.parse(query.text("position") or "", "position")
        found = await (await exported_serving.walk(self._exports.source)).proof(position)
        if found is None:
            raise NotFound(f"No digest covers an event {position}.")
        return Response(
            exported.line(found), media_type="application/json", headers={"cache-control": "no-store"}
        )

    async def verify(self, request: Request) -> Response:
        """Every digest checked, and the events of the last of them linked anew."""
        await self._auditors(request.scope)
        count = Query(request, ("digests",)).number("digests", 1, most=MAX_CHECKED)
        found = await exported_serving.check(self._exports.source, count)
        return exchange.answer(
            wire.Verified(found.problem is None, found.digests, found.events, found.until, found.problem)
        )


def _shown(signed: Signed) -> wire.SignedDigest:
    position = None if signed.position is None else str(signed.position)
    return wire.SignedDigest(signed.number, signed.body, signed.signature.hex(), position)
