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
from broker.domain.certificates import Issued as Signed
from broker.errors import NotFound, ValidationError
from broker.events.certificate_commands import PRODUCER, CertificateCommands
from broker.events.client_commands import ClientCommands
from broker.projections import holders
from broker.projections.holders import Certificate
from broker.services.server import exchange, visibility
from broker.services.server.admin import certificates_wire as wire
from broker.services.server.admin import paging
from broker.services.server.admin.parts import Parts, by
from broker.web import body
from broker.web.parameters import Query

PATH: Final = "/admin/certificates"
STATUSES: Final = ("all", "active", "expiring", "superseded", "expired", "revoked")
ROLES: Final = ("all", *sorted(certificates.ROLES))
FILTERS: Final = ("status", "client_id", "role", *paging.PARAMETERS)
HOUR_MS: Final = 3_600_000

_generate = body.Reader(wire.Generate)
_renew = body.Reader(wire.Renew)
_revoke = body.Reader(wire.Revoke)


class Certificates:
    """The endpoints. Gateways and servers follow within a fraction of a second, on open connections too."""

    def __init__(self, parts: Parts) -> None:
        self._admins = parts.admins
        self._authority = parts.authority
        self._commands = CertificateCommands(parts.registry)
        self._clients = ClientCommands(parts.registry, parts.keyring)
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
        if given.role != PRODUCER and given.domain is not None:
            raise ValidationError("domain", f"is a client's; a {given.role} has none")
        signed = await self._authority.issue(
            given.client_name,
            given.role,
            validity_days=given.validity_days,
            csr_pem=given.csr_pem,
            dns=given.dns,
            ips=given.ips,
        )
        entry = signed.entry(given.client_name, given.role, issued_at_ms=clock.now_ms())
        if given.role == PRODUCER:
            admitted = await self._clients.admit_client(entry, given.domain, **by(caller))
            registered, positions = admitted.value, admitted.positions
        else:
            done = await self._commands.record_certificate(entry, **by(caller))
            registered, positions = False, done.positions
        visible = await visibility.wait(self._database, positions, "clients")
        return await self._issued(signed, entry, registered=registered, visible=visible)

    async def renew(self, request: Request) -> Response:
        """A certificate in place of the current one, with an overlap."""
        caller = await self._admins(request.scope)
        given = await exchange.read(request, _renew)
        certificates.check_name(given.client_name)
        replaced = _current(await self._commands.of(given.client_name), given)
        signed = await self._authority.issue(
            given.client_name,
            replaced.role,
            validity_days=given.validity_days,
            csr_pem=given.csr_pem,
            dns=given.dns,
            ips=given.ips,
        )
        entry = signed.entry(given.client_name, replaced.role, issued_at_ms=clock.now_ms())
        overlap = given.overlap_hours * HOUR_MS
        done = await self._commands.renew_certificate(
            entry, replaces=replaced.fingerprint, overlap_ms=overlap, **by(caller)
        )
        visible = await visibility.wait(self._database, done.positions, "clients")
        return await self._issued(
            signed,
            entry,
            replaces=replaced.fingerprint,
            overlap_until=_time(done.value.revoked_at_ms),
            visible=visible,
        )

    async def revoke(self, request: Request) -> Response:
        """Refuse one certificate from now on, or all of a name's; again changes nothing."""
        caller = await self._admins(request.scope)
        given = await exchange.read(request, _revoke)
        selectors = (given.client_name, given.serial, given.fingerprint)
        if sum(value is not None for value in selectors) != 1:
            raise ValidationError(
                "client_name", "or serial or fingerprint must be given, exactly one of them"
            )
        done = await self._commands.revoke_certificate(
            reason=certificates.check_reason(given.reason),
            client_id=given.client_name,
            serial=None if given.serial is None else certificates.check_hex(given.serial, "serial"),
            fingerprint=None
            if given.fingerprint is None
            else certificates.check_hex(given.fingerprint, "fingerprint"),
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

    async def _issued(
        self,
        signed: Signed,
        entry: CertificateEntry,
        *,
        visible: bool,
        registered: bool = False,
        replaces: str | None = None,
        overlap_until: str | None = None,
    ) -> Response:
        answer = wire.Issued(
            client_id=entry.client_id,
            role=msgspec.convert(entry.role, wire.Role),
            serial=signed.serial,
            fingerprint=signed.fingerprint,
            certificate_pem=signed.certificate_pem,
            private_key_pem=signed.private_key_pem,
            ca_pem=await self._authority.certificate_pem(),
            expires_at=clock.iso(signed.not_after_ms),
            registered=registered,
            replaces=replaces,
            overlap_until=overlap_until,
            visible=visible,
        )
        return exchange.answer(answer, 201)


def _current(held: list[CertificateEntry], given: wire.Renew) -> CertificateEntry:
    """The certificate to replace. Raises NotFound, and ValidationError where it is not clear which."""
    wanted = None if given.fingerprint is None else certificates.check_hex(given.fingerprint, "fingerprint")
    active = [each for each in held if each.status == "active" and wanted in {None, each.fingerprint}]
    if not active:
        raise NotFound(f"{given.client_name} has no such certificate to renew.")
    if len(active) > 1:
        raise ValidationError("fingerprint", f"is needed: {given.client_name} has several certificates")
    return active[0]


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
