"""Who a certificate stands for, decided from the registry alone."""

from __future__ import annotations

import msgspec
import pytest

from broker.domain import certificates
from broker.domain.certificates import CertificateEntry
from broker.web import identity
from broker.web.peer import Peer, from_der
from broker.web.problems import Problem
from support.pki import Pki

NOW = 1_000_000


class Registry(dict):
    def certificate(self, fingerprint: str) -> CertificateEntry | None:
        return self.get(fingerprint)


def entry(**changes) -> CertificateEntry:
    fresh = CertificateEntry(
        fingerprint="f" * 64,
        serial="1",
        client_id="demo",
        role="producer",
        not_before_ms=0,
        not_after_ms=2 * NOW,
        issued_at_ms=0,
    )
    return msgspec.structs.replace(fresh, **changes)


def decide(found: CertificateEntry | None, roles=("producer",)):
    registry = Registry({found.fingerprint: found} if found else {})
    peer = Peer("f" * 64, b"")
    vars(peer)["for_clients"] = True  # as its certificate would say
    return identity.decide(peer, registry, roles, NOW)


def test_an_active_certificate_is_its_client():
    """The identity names client, role and certificate."""
    assert decide(entry()) == identity.Identity("demo", "producer", "f" * 64, "1")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"status": "revoked", "revoked_at_ms": 1}, "certificate_revoked"),
        ({"status": "revoked", "revoked_at_ms": 2 * NOW}, "certificate_revoked"),
        ({"status": "revoked", "revoked_at_ms": 1, "not_after_ms": 5}, "certificate_revoked"),
        ({"not_after_ms": NOW}, "certificate_expired"),
        ({"not_before_ms": NOW + 1}, "certificate_expired"),
        ({"status": "superseded", "revoked_at_ms": NOW}, "certificate_revoked"),
        ({"status": "superseded"}, "certificate_revoked"),
        ({"role": "worker"}, "certificate_purpose"),
        ({"role": "server"}, "certificate_purpose"),
    ],
)
def test_each_fault_has_its_own_403(changes, code):
    """Revoked, expired, replaced, or of a role that may not do this."""
    found = decide(entry(**changes))
    assert isinstance(found, Problem)
    assert found.code == code


def test_a_superseded_certificate_works_through_its_overlap():
    """So that its owner can change over."""
    assert isinstance(decide(entry(status="superseded", revoked_at_ms=NOW + 1)), identity.Identity)


def test_without_a_certificate_one_is_required():
    """401 is for no certificate only."""
    found = identity.decide(None, Registry(), ("producer",), NOW)
    assert isinstance(found, Problem)
    assert found.code == "client_certificate_required"
    with pytest.raises(Problem):
        identity.require(None, Registry(), ("producer",), NOW)


def test_an_unregistered_certificate_is_unknown_or_expired(pki: Pki):
    """A certificate whose entry is gone is judged by its own dates."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    from broker import clock

    for issued, code in ((pki.expired()[2], "certificate_expired"), (pki.client()[2], "client_unknown")):
        der = x509.load_pem_x509_certificate(issued.certificate_pem.encode()).public_bytes(Encoding.DER)
        found = identity.decide(from_der(der), Registry(), certificates.ROLES, clock.now_ms())
        assert isinstance(found, Problem)
        assert found.code == code
