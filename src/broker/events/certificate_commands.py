"""What is done to certificates: each command one transaction on the control slot.

`actor` is who asks (`user:…`, `system`). Every command also raises LogUnavailable (outcome unknown) and
LogRefused.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import structs

from broker import clock
from broker.domain import certificates, clients
from broker.domain.certificates import CertificateEntry
from broker.domain.clients import ClientEntry
from broker.errors import Conflict, NotFound, ValidationError
from broker.events import types
from broker.events.control import Changes, Committed, Registry, View, certificate_field, client_field

PRODUCER: Final = "producer"


def holder_field(name: str) -> str:
    """The registry field with the fingerprints of a name's certificates that have not expired."""
    return f"certs-of:{name}"


def serial_field(serial: str) -> str:
    """The registry field that names the fingerprint of a serial number (hex)."""
    return f"serial:{serial.lower()}"


class CertificateCommands:
    """Commands on certificates that the CA has signed."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def record_certificate(
        self, new: CertificateEntry, *, actor: str, correlation_id: str | None = None
    ) -> Committed[CertificateEntry]:
        """Let a new certificate in. A producer must be registered and have no active one; services may.

        Raises NotFound, Conflict, ValidationError.
        """

        def decide(view: View) -> Changes[CertificateEntry]:
            client = _client_of(view, new)
            # Every process of a service may have a certificate of its own.
            rivals = held(view, new.client_id) if client is not None else []
            return issue(view, new, certificates.decide_issue(rivals, new, now_ms=clock.now_ms()), client)

        return await self._registry.transact(decide, actor=actor, correlation_id=correlation_id)

    async def of(self, name: str) -> list[CertificateEntry]:
        """A name's certificates as they are now, but for some that have expired."""
        read = await self._registry.transact(lambda view: Changes(held(view, name)), actor="")
        return read.value

    async def renew_certificate(
        self,
        new: CertificateEntry,
        *,
        actor: str,
        replaces: str | None = None,
        overlap_ms: int = certificates.RENEWAL_OVERLAP_MS,
        correlation_id: str | None = None,
    ) -> Committed[CertificateEntry]:
        """Let a certificate in for another, which works for the overlap yet; the value is that other one.

        `replaces`: fingerprint of the one replaced; needed only where a service has several. Raises NotFound,
        Conflict, ValidationError.
        """

        def decide(view: View) -> Changes[CertificateEntry]:
            client = _client_of(view, new)
            chosen = [
                entry
                for entry in held(view, new.client_id)
                if entry.status == "active" and replaces in {None, entry.fingerprint}
            ]
            if len(chosen) > 1:
                raise ValidationError(
                    "replaces", f"is needed, because {new.client_id} has several certificates"
                )
            now = clock.now_ms()
            change = certificates.decide_renew(chosen, new, now_ms=now, overlap_ms=overlap_ms)
            changes = issue(view, new, change, client)
            (changes.value,) = change.closed
            return changes

        return await self._registry.transact(decide, actor=actor, correlation_id=correlation_id)

    async def revoke_certificate(
        self,
        *,
        reason: str,
        actor: str,
        client_id: str | None = None,
        fingerprint: str | None = None,
        serial: str | None = None,
        correlation_id: str | None = None,
    ) -> Committed[tuple[CertificateEntry, ...]]:
        """Refuse one certificate from now on, or all of a name's; the value is what was revoked by this call.

        Exactly one of the three says which. Raises NotFound, ValidationError.
        """
        if sum(given is not None for given in (client_id, fingerprint, serial)) != 1:
            raise ValidationError("fingerprint", "give exactly one of client name, serial and fingerprint")

        def decide(view: View) -> Changes[tuple[CertificateEntry, ...]]:
            chosen = held(view, client_id) if client_id is not None else [_one(view, fingerprint, serial)]
            closed = certificates.decide_revoke(chosen, reason=reason, now_ms=clock.now_ms()).closed
            changes = Changes(closed)
            close(changes, closed)
            for name in {entry.client_id for entry in closed}:
                client = view.get(client_field(name), ClientEntry)
                if client is not None and client.active_certificate in {e.fingerprint for e in closed}:
                    changes.writes[client_field(name)] = structs.replace(client, active_certificate=None)
            return changes

        return await self._registry.transact(decide, actor=actor, correlation_id=correlation_id)


def held(view: View, name: str) -> list[CertificateEntry]:
    """A name's certificates, revoked and superseded ones too, but for some that have expired."""
    fingerprints = view.get(holder_field(name), list[str]) or []
    found = (view.get(certificate_field(fingerprint), CertificateEntry) for fingerprint in fingerprints)
    return [entry for entry in found if entry is not None]


def close(changes: Changes[Any], closed: tuple[CertificateEntry, ...]) -> None:
    """Write revoked certificates, with an event for each."""
    for entry in closed:
        field = certificate_field(entry.fingerprint)
        event = types.CertRevoked(
            entry.fingerprint, entry.serial, entry.client_id, entry.reason or "unspecified"
        )
        changes.events.append((field, event))
        changes.writes[field] = entry


def _client_of(view: View, new: CertificateEntry) -> ClientEntry | None:
    """The client of a producer's certificate; None for services, which are no clients."""
    if new.role != PRODUCER:
        return None
    return clients.known(view.get(client_field(new.client_id), ClientEntry), new.client_id)


def _one(view: View, fingerprint: str | None, serial: str | None) -> CertificateEntry:
    if serial is not None:
        fingerprint = view.get(serial_field(serial), str)
    entry = None
    if fingerprint is not None:
        entry = view.get(certificate_field(fingerprint), CertificateEntry)
    if entry is None:
        raise NotFound("No such certificate.")
    return entry


def issue(
    view: View, new: CertificateEntry, change: certificates.Change, client: ClientEntry | None
) -> Changes[CertificateEntry]:
    """Write a new certificate and what it closes; at most one, which its event names."""
    field, serial = certificate_field(new.fingerprint), serial_field(new.serial)
    if view.raw(field) is not None or view.raw(serial) is not None:
        raise Conflict("This certificate is already registered.")
    changes = Changes(new, [(field, _issued_event(new, change.closed))])
    changes.writes |= {field: new, serial: new.fingerprint}
    changes.writes |= {certificate_field(entry.fingerprint): entry for entry in change.closed}
    now = clock.now_ms()
    kept = [entry.fingerprint for entry in held(view, new.client_id) if now < entry.not_after_ms]
    changes.writes[holder_field(new.client_id)] = [*kept, new.fingerprint]
    if client is not None:
        changes.writes[client_field(client.client_id)] = structs.replace(
            client, active_certificate=new.fingerprint
        )
    return changes


def _issued_event(new: CertificateEntry, closed: tuple[CertificateEntry, ...]) -> types.Event:
    facts = (new.fingerprint, new.serial, new.client_id, new.role, new.not_before_ms, new.not_after_ms)
    if not closed:
        return types.CertIssued(*facts)
    (old,) = closed
    return types.CertRenewed(*facts, old.fingerprint, old.revoked_at_ms or old.not_after_ms)
