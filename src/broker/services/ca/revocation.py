"""Certificate revocation lists (RFC 5280, section 5), for those outside who check certificates of ours."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from broker.domain.certificates import CertificateEntry
from broker.services.ca.profiles import utc

# The registry's reasons are free text; these are the ones that a CRL can say.
REASONS = {
    "key_compromise": x509.ReasonFlags.key_compromise,
    "affiliation_changed": x509.ReasonFlags.affiliation_changed,
    "superseded": x509.ReasonFlags.superseded,
    "cessation_of_operation": x509.ReasonFlags.cessation_of_operation,
    "privilege_withdrawn": x509.ReasonFlags.privilege_withdrawn,
}


class Crl(msgspec.Struct, frozen=True):
    """A signed list in its two spellings."""

    pem: bytes
    der: bytes


def sign(
    issuer: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    revoked: Iterable[CertificateEntry],
    *,
    now_ms: int,
    next_update_ms: int,
) -> Crl:
    """The list over the entries whose status is revoked; the number is the time, so it always grows."""
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(utc(now_ms))
        .next_update(utc(next_update_ms))
        .add_extension(x509.CRLNumber(now_ms), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
    )
    for entry in revoked:
        if entry.status == "revoked":
            builder = builder.add_revoked_certificate(_line(entry, now_ms))
    crl = builder.sign(key, hashes.SHA256())
    return Crl(crl.public_bytes(Encoding.PEM), crl.public_bytes(Encoding.DER))


def _line(entry: CertificateEntry, now_ms: int) -> x509.RevokedCertificate:
    at = entry.revoked_at_ms if entry.revoked_at_ms is not None else now_ms
    builder = x509.RevokedCertificateBuilder().serial_number(int(entry.serial, 16)).revocation_date(utc(at))
    reason = REASONS.get((entry.reason or "").strip().lower().replace(" ", "_").replace("-", "_"))
    if reason is not None:
        builder = builder.add_extension(x509.CRLReason(reason), critical=False)
    return builder.build()
