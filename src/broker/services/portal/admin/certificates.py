"""Certificates: issued with their key shown once, renewed, revoked, and listed."""

from __future__ import annotations

import base64
import re
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker import clock
from broker.domain import certificates
from broker.domain.certificates import MAX_VALIDITY_DAYS, REASONS, CertificateEntry
from broker.errors import Conflict, NotFound, ValidationError
from broker.events.issuing import HOUR_MS, Asked, Done, Issuing
from broker.projections import holders
from broker.services.portal import forms, pages
from broker.services.portal.admin import lists
from broker.services.portal.forms import Form
from broker.services.portal.parts import Parts
from broker.web import problems
from broker.web.parameters import Query
from broker.web.problems import Problem

PATH: Final = "/admin/certificates"
ROLES: Final = ("producer", *sorted(certificates.ROLES - {"producer"}))
STATUSES: Final = ("all", "active", "expiring", "superseded", "expired", "revoked")
_FILTERS: Final = ("status", "client_id", "role")
_NEW: Final = ("client_name", "domain", "role", "validity_days", "csr_pem")
_RENEW: Final = ("validity_days", "overlap_hours", "csr_pem")
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}\Z")


class Certificates:
    """The endpoints."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._issuing = Issuing(parts.accounts.registry, parts.keyring, parts.authority)

    def routes(self) -> list[Route]:
        """All of them."""
        one = f"{PATH}/{{fingerprint}}"
        return [
            Route(PATH, self.listed, methods=["GET"]),
            Route(PATH, self.issue, methods=["POST"]),
            Route(one, self.one, methods=["GET"]),
            Route(f"{one}/renew", self.renew, methods=["POST"]),
            Route(f"{one}/revoke", self.revoke, methods=["POST"]),
        ]

    async def listed(self, request: Request) -> Response:
        """A page of certificates, the newest first; of those that expire, the soonest first."""
        await self._parts.gate(request, "admin")
        return await self._list(request)

    async def issue(self, request: Request) -> Response:
        """A certificate for somebody who has none; its page is the only one that ever shows its key."""
        visitor = await self._parts.gate(request, "admin")
        form = await forms.read(request, visitor.ticket, _NEW)
        try:
            done = await self._issuing.issue(
                form.text("client_name").strip(),
                certificates.check_role(form.text("role")),
                _asked(form),
                domain=form.optional("domain"),
                **visitor.by,
            )
        except (ValidationError, Conflict) as error:
            return await self._list(request, problems.of(error), new={name: form.text(name) for name in _NEW})
        return await self._issued(request, done)

    async def one(self, request: Request) -> Response:
        """One of them, with what can be done to it."""
        await self._parts.gate(request, "admin")
        return await self._certificate(request)

    async def renew(self, request: Request) -> Response:
        """Another in its place, which works beside it for a while."""
        visitor = await self._parts.gate(request, "admin")
        form = await forms.read(request, visitor.ticket, _RENEW)
        entry = await self._entry(request)
        try:
            done = await self._issuing.renew(
                entry.client_id,
                _asked(form),
                overlap_ms=form.number("overlap_hours", least=0, most=24 * 30) * HOUR_MS,
                fingerprint=entry.fingerprint,
                **visitor.by,
            )
        except (ValidationError, Conflict, NotFound) as error:
            return await self._certificate(request, problems.of(error))
        return await self._issued(request, done)

    async def revoke(self, request: Request) -> Response:
        """Nobody is let in with it any more."""
        visitor = await self._parts.gate(request, "admin")
        form = await forms.read(request, visitor.ticket, ("reason",))
        entry = await self._entry(request)
        try:
            done = await self._issuing.revoke(
                form.text("reason"), fingerprint=entry.fingerprint, **visitor.by
            )
        except ValidationError as error:
            return await self._certificate(request, problems.of(error))
        seen = await lists.notice(self._parts, done.positions, "clients", "certificate-revoked")
        return pages.see(f"{PATH}/{entry.fingerprint}", seen)

    async def _entry(self, request: Request) -> CertificateEntry:
        """The certificate of the address, as the registry has it now. Raises NotFound."""
        found = self._parts.trust.certificate(_fingerprint(request))
        if found is None:
            raise NotFound
        return found

    async def _list(
        self, request: Request, wrong: Problem | None = None, new: dict[str, str] | None = None
    ) -> Response:
        asked = lists.asked(request, _FILTERS)
        now = clock.now_ms()
        found: list[holders.Certificate] = []
        page, errors = lists.empty(), dict[str, str]()
        try:
            query = Query(request, (*_FILTERS, *lists.PAGING, "done"))
            status = query.choice("status", STATUSES, "all")
            role = query.choice("role", ("all", *ROLES), "all")
            found, page = await holders.certificates(
                self._parts.queries.store,
                status=None if status == "all" else msgspec.convert(status, holders.CertificateStatus),
                client_id=query.client(),
                role=None if role == "all" else role,
                now_ms=now,
                warning_days=self._parts.settings.certificate_warning_days,
                per_page=lists.PER_PAGE,
                at=lists.place(query),
            )
        except ValidationError as error:
            errors = lists.shown(error)
        defaults = dict.fromkeys(_NEW, "") | {"validity_days": "365", "role": "producer"}
        return pages.render(
            request,
            "certificates.html",
            problems.STATUS[wrong.code] if wrong else 400 if errors else 200,
            certificates=found,
            page=page,
            asked=asked,
            now=now,
            roles=ROLES,
            statuses=STATUSES,
            most_days=MAX_VALIDITY_DAYS,
            new=new or defaults,
            wrong=wrong,
            field_errors=errors | {each.field: each.reason for each in (wrong.details if wrong else ())},
        )

    async def _certificate(self, request: Request, wrong: Problem | None = None) -> Response:
        found = await holders.certificate(self._parts.queries.store, _fingerprint(request))
        if found is None:
            raise NotFound
        return pages.render(
            request,
            "certificate.html",
            problems.STATUS[wrong.code] if wrong else 200,
            certificate=found,
            now=clock.now_ms(),
            reasons=REASONS,
            most_days=MAX_VALIDITY_DAYS,
            wrong=wrong,
            field_errors={each.field: each.reason for each in (wrong.details if wrong else ())},
        )

    async def _issued(self, request: Request, done: Done) -> Response:
        """The files, in the page itself: nothing here keeps the key."""
        files: dict[str, Any] = {f"{done.entry.client_id}.crt": done.signed.certificate_pem}
        if done.signed.private_key_pem is not None:
            files[f"{done.entry.client_id}.key"] = done.signed.private_key_pem
        files["ca.crt"] = await self._issuing.authority_pem()
        await lists.notice(self._parts, done.positions, "clients", "")
        return pages.render(
            request,
            "issued.html",
            201,
            done=done,
            files={
                name: (pem, f"data:application/x-pem-file;base64,{base64.b64encode(pem.encode()).decode()}")
                for name, pem in files.items()
            },
        )


def _asked(form: Form) -> Asked:
    return Asked(
        validity_days=form.number("validity_days", least=1, most=MAX_VALIDITY_DAYS),
        csr_pem=form.optional("csr_pem"),
    )


def _fingerprint(request: Request) -> str:
    given: str = request.path_params["fingerprint"]
    if not _FINGERPRINT.match(given):
        raise NotFound
    return given
