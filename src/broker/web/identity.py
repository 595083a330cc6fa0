"""Who a request comes from: the peer's certificate judged against the registry. Pure decisions."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import msgspec

from broker.domain import certificates
from broker.domain.certificates import CertificateEntry
from broker.web.peer import Peer
from broker.web.problems import Problem


class Registry(Protocol):
    """The current certificates, by fingerprint."""

    def certificate(self, fingerprint: str) -> CertificateEntry | None: ...


class Identity(msgspec.Struct, frozen=True):
    """A client that was let in, and by which certificate."""

    client_id: str
    role: str
    fingerprint: str
    serial: str


def decide(peer: Peer | None, registry: Registry, roles: Collection[str], now_ms: int) -> Identity | Problem:
    """The identity, or the problem to answer: 401 without a certificate, 403 that says what is wrong."""
    if peer is None:
        return Problem("client_certificate_required", "This needs a client certificate of this broker.")
    if not peer.for_clients:
        return Problem("certificate_purpose", "This certificate is not for TLS clients.")
    entry = registry.certificate(peer.fingerprint)
    if entry is None:
        return _unknown(peer, now_ms)
    if not certificates.works(entry, now_ms):
        return _refused(entry, now_ms)
    if entry.role not in roles:
        return Problem("certificate_purpose", f"A certificate of the role {entry.role} may not do this.")
    return Identity(entry.client_id, entry.role, entry.fingerprint, entry.serial)


def require(peer: Peer | None, registry: Registry, roles: Collection[str], now_ms: int) -> Identity:
    """As `decide`, raising the problem."""
    found = decide(peer, registry, roles, now_ms)
    if isinstance(found, Problem):
        raise found
    return found


def _unknown(peer: Peer, now_ms: int) -> Problem:
    # Entries may be tidied away after their end; the date is what its owner can act on.
    if now_ms >= peer.not_after_ms:
        return Problem("certificate_expired", "This certificate has expired.")
    return Problem("client_unknown", "This certificate is not registered.")


def _refused(entry: CertificateEntry, now_ms: int) -> Problem:
    if entry.status == "revoked":
        return Problem("certificate_revoked", "This certificate was revoked.")
    if now_ms >= entry.not_after_ms:
        return Problem("certificate_expired", "This certificate has expired.")
    if now_ms < entry.not_before_ms:
        return Problem("certificate_expired", "This certificate is not valid yet.")
    return Problem("certificate_revoked", "This certificate was replaced by a newer one.")
