"""/admin/certificates: issued, renewed, revoked and listed.

What is signed is let in by its entry in the registry and by nothing else: a certificate whose answer was lost
lets nobody in who does not hold its key, and can be revoked by its client's name.
"""

from __future__ import annotations

from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker import clock
from broker.domain import certificates
from broker.domain.certificates import CertificateEntry
from broker.events.issuing import HOUR_MS, Asked, Done, Issuing
from broker.projections import holders, visibility
from broker.projections.holders import Certificate
from broker.services.server import exchange
from broker.services.server.admin import certificates_wire as wire
from broker.services.server.admin import paging
from broker.services.server.admin.parts import Parts, by
from broker.web import body
from broker.web.parameters import Query

PATH: Final = "/admin/certificates"
STATUSES: Final = ("all", "active", "expiring", "superseded", "expired", "revoked")
ROLES: Final = ("all", *sorted(certificates.ROLES))
FILTERS: Final = ("status", "client_id", "role", *paging.PARAMETERS)

_generate = body.Reader(wire.Generate)
_renew = body.Reader(wire.Renew)
_revoke = body.Reader(wire.Revoke)


class Certificates:
    """The endpoints. Gateways and servers follow within a fraction of a second, on open connections too."""

    def __init__(self, parts: Parts) -> None:
        self._admins = parts.admins
        self._issuing = Issuing(parts.registry, parts.keyring, parts.authority)
        self._database = parts.database
        self._models = parts.models
        self._trust = parts.trust
        self._warning_days = parts.settings.certificate_warning_days

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route(f"{PATH}/generate", self.generate, methods=["POST"]),
            Route(f"{PATH}/renew", self.renew, methods=["POST"]),
            Route(f"{PATH}/revoke", self.revoke, methods=["POST"]),
            Route(PATH, self.listed, methods=["GET"]),
        ]

    async def generate(self, request: Request) -> Response:
        """A certificate for somebody who has none that is active."""
        caller = await self._admins(request.scope)
        given = await exchange.read(request, _generate)
        done = await self._issuing.issue(
            given.client_name, given.role, _asked(given), domain=given.domain, **by(caller)
        )
        return await self._issued(done)

    async def renew(self, request: Request) -> Response:
        """A certificate in place of the current one, with an overlap."""
        caller = await self._admins(request.scope)
        given = await exchange.read(request, _renew)
        done = await self._issuing.renew(
            given.client_name,
            _asked(given),
            overlap_ms=given.overlap_hours * HOUR_MS,
            fingerprint=given.fingerprint,
            **by(caller),
        )
        return await self._issued(done)

    async def revoke(self, request: Request) -> Response:
        """Refuse one certificate from now on, or all of a name's; again changes nothing."""
        caller = await self._admins(request.scope)
        given = await exchange.read(request, _revoke)
        done = await self._issuing.revoke(
            given.reason,
            name=given.client_name,
            serial=given.serial,
            fingerprint=given.fingerprint,
            **by(caller),
        )
        visible = await visibility.wait(self._database, done.positions, "clients")
        # This server's own revocation list then has it when the answer is there.
        await visibility.followed(self._trust, done.positions)
        return exchange.answer(wire.Revoked([_revoked(entry) for entry in done.value], visible))

    async def listed(self, request: Request) -> Response:
        """A page of certificates."""
        await self._admins(request.scope)
        query = Query(request, FILTERS)
        status = query.choice("status", STATUSES, "all")
        role = query.choice("role", ROLES, "all")
        now = clock.now_ms()
        found, page = await holders.certificates(
            self._models.store,
            status=None if status == "all" else msgspec.convert(status, holders.CertificateStatus),
            client_id=query.client(),
            role=None if role == "all" else role,
            now_ms=now,
            warning_days=self._warning_days,
            **paging.asked(query),
        )
        shown = [_shown(each, now) for each in found]
        return exchange.answer(wire.Certificates(certificates=shown, **paging.told(page)))

    async def _issued(self, done: Done) -> Response:
        signed = done.signed
        answer = wire.Issued(
            client_id=done.entry.client_id,
            role=msgspec.convert(done.entry.role, wire.Role),
            serial=signed.serial,
            fingerprint=signed.fingerprint,
            certificate_pem=signed.certificate_pem,
            private_key_pem=signed.private_key_pem,
            ca_pem=await self._issuing.authority_pem(),
            expires_at=clock.iso(signed.not_after_ms),
            registered=done.registered,
            replaces=done.replaces,
            overlap_until=_time(done.overlap_until_ms),
            visible=await visibility.wait(self._database, done.positions, "clients"),
        )
        return exchange.answer(answer, 201)


def _asked(given: wire.Generate | wire.Renew) -> Asked:
    return Asked(validity_days=given.validity_days, csr_pem=given.csr_pem, dns=given.dns, ips=given.ips)


def _revoked(entry: CertificateEntry) -> wire.RevokedOne:
    return wire.RevokedOne(
        entry.client_id,
        msgspec.convert(entry.role, wire.Role),
        entry.serial,
        entry.fingerprint,
        clock.iso(entry.not_after_ms),
        clock.iso(entry.revoked_at_ms or 0),
        entry.reason or "unspecified",
    )


def _shown(row: Certificate, now_ms: int) -> wire.Certificate:
    expired = row.status != "revoked" and row.not_after <= now_ms
    return wire.Certificate(
        client_id=row.client_id,
        role=msgspec.convert(row.role, wire.Role),
        serial=row.serial,
        fingerprint=row.fingerprint,
        status="expired" if expired else msgspec.convert(row.status, wire.Status),
        issued_at=clock.iso(row.issued_at),
        not_before=clock.iso(row.not_before),
        expires_at=clock.iso(row.not_after),
        replaces=row.replaces,
        replaced_by=row.replaced_by,
        overlap_until=_time(row.overlap_until),
        revoked_at=_time(row.revoked_at),
        reason=row.reason,
    )


def _time(ms: int | None) -> str | None:
    return None if ms is None else clock.iso(ms)
