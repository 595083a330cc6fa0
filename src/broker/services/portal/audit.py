"""The history, for auditors and admins: searched, one event with what proves it, exported, verified."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.errors import NotFound, ValidationError
from broker.events import (
    digests_making,
    exported,
    exported_file,
    exported_formats,
    exported_serving,
    exported_verifier,
    positions,
    types,
)
from broker.events.digests_key import PUBLIC_FILE
from broker.events.exported_session import Exports
from broker.events.positions import Position
from broker.projections import auditing
from broker.services.portal import forms, pages
from broker.services.portal.admin import lists
from broker.services.portal.exporting import Exporting
from broker.services.portal.jobs import Jobs
from broker.services.portal.live import Live, Look, Shown
from broker.services.portal.parts import Parts
from broker.services.portal.verifying import BACK, Verifications
from broker.services.portal.visitors import Visitor
from broker.web.parameters import Query

PER_PAGE: Final = 100
_FILTERS: Final = ("from_date", "to_date", "type", "subject", "actor", "client_id", "correlation_id")
FORMATS: Final = {"jsonl": "JSON lines", "csv": "CSV", "parquet": "Parquet"}
_READERS: Final = ("auditor", "admin")
EVERY_SECONDS: Final = 1.0


class Audit:
    """The endpoints."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._made: Exports | None = None
        self._exported: Jobs[Exporting] = Jobs("export")
        self._verifications = Verifications(parts, lambda: self._exports.source)
        self._live = Live(parts, *_READERS, seconds=EVERY_SECONDS)

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/audit", self.search, methods=["GET"]),
            Route("/audit/export", self.export, methods=["POST"]),
            Route("/audit/exports/{export_id}", self.exporting, methods=["GET"]),
            Route("/audit/exports/{export_id}/file", self.fetch, methods=["GET"]),
            Route("/audit/exports/{export_id}/live", self.following, methods=["GET"]),
            Route("/audit/exports/{export_id}/cancel", self.cancel, methods=["POST"]),
            *self._verifications.routes(),
            Route("/audit/verify.py", self.verifier, methods=["GET"]),
            Route("/audit/digests.pub", self.public_key, methods=["GET"]),
            Route("/audit/digests.jsonl", self.digests, methods=["GET"]),
            Route("/audit/{position}/proof", self.proof, methods=["GET"]),
            Route("/audit/{position}", self.one, methods=["GET"]),
        ]

    async def search(self, request: Request) -> Response:
        """Events that match every filter given, the newest first."""
        await self._parts.gate(request, *_READERS)
        page, errors = auditing.Page([], None), dict[str, str]()
        try:
            query = Query(request, (*_FILTERS, "cursor"))
            after = query.text("cursor")
            page = await auditing.page(
                self._parts.queries.store,
                auditing.wanted_by(query),
                limit=PER_PAGE,
                after=None if after is None else auditing.cursor(after),
            )
        except ValidationError as error:
            errors = lists.shown(error)
        return pages.render(
            request,
            "audit.html",
            400 if errors else 200,
            events=page.events,
            next=None if page.next is None else page.next.text(),
            asked=lists.asked(request, _FILTERS),
            types=sorted(types.ALL),
            formats=FORMATS,
            back=BACK,
            field_errors=errors,
        )

    async def one(self, request: Request) -> Response:
        """One event, with its hash and that of the one before it."""
        await self._parts.gate(request, *_READERS)
        position = _position(request)
        event = await auditing.one(self._parts.queries.store, position)
        if event is None:
            raise NotFound
        data = msgspec.json.format(msgspec.json.encode(event.data), indent=2).decode()
        return pages.render(request, "event.html", event=event, data=data)

    async def export(self, request: Request) -> Response:
        """Begin an export of all that matches; it is on record before its page shows where its file is."""
        visitor = await self._parts.gate(request, *_READERS)
        form = await forms.read(request, visitor.ticket, ("format", *_FILTERS))
        given = {name: form.optional(name) for name in ("format", *_FILTERS)}
        query = Query(given, ("format", *_FILTERS))
        kind = query.choice("format", exported_formats.FORMATS, "jsonl")
        exported_formats.named(kind)
        self._exported.make_room()
        begun = await self._exports.begin(auditing.exported_by(query), kind, **visitor.by)
        wanted = {name: value for name, value in given.items() if value and name != "format"}
        export = Exporting(visitor.user.user_id, kind, begun, wanted)
        self._exported.add(export)
        return pages.see(f"/audit/exports/{export.id}")

    async def exporting(self, request: Request) -> Response:
        """One's own export: how far it is, its file, what ends it."""
        export = await self._own(request)
        return pages.render(request, "export.html", export=export)

    async def fetch(self, request: Request) -> Response:
        """Its file, which proves itself; once. Who only asks whether it is there fetches nothing."""
        export = await self._own(request)
        return Response() if request.method == "HEAD" else export.fetch()

    async def cancel(self, request: Request) -> Response:
        """End it; a file that is being sent breaks off."""
        visitor = await self._parts.gate(request, *_READERS)
        await forms.read(request, visitor.ticket, ())
        export = await self._own(request)
        export.cancel()
        return pages.see(f"/audit/exports/{export.id}")

    async def following(self, request: Request) -> Response:
        """How far it is, as server-sent events, until it has ended."""
        return await self._live(request, request.url.path.removesuffix("/live"), self._looking)

    def _looking(self, request: Request, visitor: Visitor) -> Look:
        export = self._exported.of(visitor.user.user_id, request.path_params["export_id"])

        async def look() -> Shown:
            return Shown(pages.fragment("exporting.html", export=export, live=True), last=not export.open)

        return look

    async def _own(self, request: Request) -> Exporting:
        visitor = await self._parts.gate(request, *_READERS)
        return self._exported.of(visitor.user.user_id, request.path_params["export_id"])

    async def digests(self, request: Request) -> Response:
        """The signed digests, which an export is verified against."""
        await self._parts.gate(request, *_READERS)
        signed = await digests_making.recorded(self._exports.source)
        return Response(
            b"".join(exported_file.digest_line(one) + b"\n" for one in signed),
            media_type="application/x-ndjson",
            headers={"content-disposition": 'attachment; filename="digests.jsonl"'},
        )

    async def verifier(self, request: Request) -> Response:
        """The stand-alone verifier: one Python file, for an auditor's own machine."""
        await self._parts.gate(request, *_READERS)
        script = await asyncio.to_thread(Path(exported_verifier.__file__).read_bytes)
        return _file(script, "verify.py", "text/x-python; charset=utf-8")

    async def public_key(self, request: Request) -> Response:
        """The public half of the key that signs digests, as PEM."""
        await self._parts.gate(request, *_READERS)
        # Who can sign has published it.
        _ = self._exports
        pem = await asyncio.to_thread((self._parts.settings.certs_dir / PUBLIC_FILE).read_bytes)
        return _file(pem, PUBLIC_FILE, "application/x-pem-file")

    async def proof(self, request: Request) -> Response:
        """One event as a file, with the proof that a signed digest vouches for it."""
        await self._parts.gate(request, *_READERS)
        position = _position(request)
        walk = await exported_serving.walk(self._exports.source)
        found = await walk.proof(position)
        if found is None:
            raise NotFound("No signed digest covers this event yet.")
        name = str(position).replace(":", "-")
        return Response(
            exported.line(found),
            media_type="application/json",
            headers={"content-disposition": f'attachment; filename="event-{name}.json"'},
        )

    @property
    def _exports(self) -> Exports:
        """Opened when first asked for. Raises DigestKeyError, KeyUnavailable."""
        if self._made is None:
            parts = self._parts
            self._made = Exports.of(parts.settings, parts.redis, parts.keys, parts.identity, parts.keyring)
        return self._made


def _file(content: bytes, name: str, kind: str) -> Response:
    return Response(
        content, media_type=kind, headers={"content-disposition": f'attachment; filename="{name}"'}
    )


def _position(request: Request) -> Position:
    try:
        return positions.parse(request.path_params["position"])
    except ValidationError:
        raise NotFound from None
