"""Certificates from request to registry: signed by the authority, let in by their entry and by nothing else.

One whose answer was lost lets nobody in who does not hold its key, and can be revoked by its client's name.
Everything also raises AuthorityUnavailable, LogUnavailable and LogRefused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from broker import clock
from broker.domain import certificates
from broker.domain.authority import Authority
from broker.domain.certificates import CertificateEntry, Issued
from broker.errors import NotFound, ValidationError
from broker.events.certificate_commands import PRODUCER, CertificateCommands
from broker.events.client_commands import ClientCommands
from broker.events.control import Committed, Registry
from broker.events.keyring import Keyring
from broker.events.positions import Position

HOUR_MS: Final = 3_600_000


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted of a certificate; without a signing request a key is made for it."""

    validity_days: int
    csr_pem: str | None = None
    dns: Sequence[str] = ()
    ips: Sequence[str] = ()


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """A fresh certificate. `registered`: its client was registered with it.

    `replaces` is the fingerprint of the one before, which works until `overlap_until_ms`.
    """

    signed: Issued
    entry: CertificateEntry
    positions: tuple[Position, ...]
    registered: bool = False
    replaces: str | None = None
    overlap_until_ms: int | None = None


class Issuing:
    """Issues, renews and revokes."""

    def __init__(self, registry: Registry, keyring: Keyring, authority: Authority) -> None:
        self._commands = CertificateCommands(registry)
        self._clients = ClientCommands(registry, keyring)
        self._authority = authority

    async def authority_pem(self) -> str:
        """The authority's own certificate."""
        return await self._authority.certificate_pem()

    async def issue(
        self,
        name: str,
        role: str,
        asked: Asked,
        *,
        domain: str | None = None,
        actor: str,
        correlation_id: str | None = None,
    ) -> Done:
        """A certificate for somebody who has none that is active; a producer is registered if need be.

        Raises ValidationError, Conflict.
        """
        if role != PRODUCER and domain is not None:
            raise ValidationError("domain", f"is a client's; a {role} has none")
        signed, entry = await self._sign(name, role, asked)
        if role == PRODUCER:
            admitted = await self._clients.admit_client(
                entry, domain, actor=actor, correlation_id=correlation_id
            )
            return Done(signed=signed, entry=entry, positions=admitted.positions, registered=admitted.value)
        done = await self._commands.record_certificate(entry, actor=actor, correlation_id=correlation_id)
        return Done(signed=signed, entry=entry, positions=done.positions)

    async def renew(
        self,
        name: str,
        asked: Asked,
        *,
        overlap_ms: int,
        fingerprint: str | None = None,
        actor: str,
        correlation_id: str | None = None,
    ) -> Done:
        """A certificate in place of the current one; `fingerprint` says which, where a name has several.

        Raises ValidationError, NotFound, Conflict.
        """
        certificates.check_name(name)
        replaced = _current(await self._commands.of(name), name, fingerprint)
        signed, entry = await self._sign(name, replaced.role, asked)
        done = await self._commands.renew_certificate(
            entry,
            replaces=replaced.fingerprint,
            overlap_ms=overlap_ms,
            actor=actor,
            correlation_id=correlation_id,
        )
        return Done(
            signed=signed,
            entry=entry,
            positions=done.positions,
            replaces=replaced.fingerprint,
            overlap_until_ms=done.value.revoked_at_ms,
        )

    async def revoke(
        self,
        reason: str,
        *,
        name: str | None = None,
        serial: str | None = None,
        fingerprint: str | None = None,
        actor: str,
        correlation_id: str | None = None,
    ) -> Committed[tuple[CertificateEntry, ...]]:
        """Refuse one certificate from now on, or all of a name's; again changes nothing.

        Raises ValidationError, NotFound.
        """
        if sum(value is not None for value in (name, serial, fingerprint)) != 1:
            raise ValidationError(
                "client_name", "or serial or fingerprint must be given, exactly one of them"
            )
        return await self._commands.revoke_certificate(
            reason=certificates.check_reason(reason),
            client_id=name,
            serial=None if serial is None else certificates.check_hex(serial, "serial"),
            fingerprint=None if fingerprint is None else certificates.check_hex(fingerprint, "fingerprint"),
            actor=actor,
            correlation_id=correlation_id,
        )

    async def _sign(self, name: str, role: str, asked: Asked) -> tuple[Issued, CertificateEntry]:
        signed = await self._authority.issue(
            name,
            role,
            validity_days=asked.validity_days,
            csr_pem=asked.csr_pem,
            dns=asked.dns,
            ips=asked.ips,
        )
        return signed, signed.entry(name, role, issued_at_ms=clock.now_ms())


def _current(held: list[CertificateEntry], name: str, fingerprint: str | None) -> CertificateEntry:
    """The certificate to replace. Raises NotFound, and ValidationError where it is not clear which."""
    wanted = None if fingerprint is None else certificates.check_hex(fingerprint, "fingerprint")
    active = [each for each in held if each.status == "active" and wanted in {None, each.fingerprint}]
    if not active:
        raise NotFound(f"{name} has no such certificate to renew.")
    if len(active) > 1:
        raise ValidationError("fingerprint", f"is needed: {name} has several certificates")
    return active[0]
