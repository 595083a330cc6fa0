"""Certificate revocation lists (RFC 5280, section 5), for those outside who check certificates of ours."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from broker.domain import certificates
from broker.domain.certificates import CertificateEntry, Crl
from broker.services.ca.profiles import utc

# `unspecified` is said by saying nothing (RFC 5280, section 5.3.1).
REASONS: Final[dict[str, x509.ReasonFlags]] = {
    reason.value: reason
    for reason in x509.ReasonFlags
    if reason.value in certificates.REASONS and reason is not x509.ReasonFlags.unspecified
}


def sign(
    issuer: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    known: Iterable[CertificateEntry],
    *,
    now_ms: int,
    next_update_ms: int,
) -> Crl:
    """The list over those of `known` that were taken back; its number is the time, so it always grows.

    One that expired meanwhile is listed until a list that was signed after its end (RFC 5280, section 3.3).
    """
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    since = 2 * now_ms - next_update_ms
    lines = [
        _line(entry, now_ms)
        for entry in known
        if certificates.stopped(entry, now_ms) and entry.not_after_ms > since
    ]
    # All lines at once: adding them one by one copies the list each time.
    builder = (
        x509.CertificateRevocationListBuilder(revoked_certificates=lines)
        .issuer_name(issuer.subject)
        .last_update(utc(now_ms))
        .next_update(utc(next_update_ms))
        .add_extension(x509.CRLNumber(now_ms), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
    )
    crl = builder.sign(key, hashes.SHA256())
    return Crl(crl.public_bytes(Encoding.PEM), crl.public_bytes(Encoding.DER))


def _line(entry: CertificateEntry, now_ms: int) -> x509.RevokedCertificate:
    at = entry.revoked_at_ms if entry.revoked_at_ms is not None else now_ms
    builder = x509.RevokedCertificateBuilder().serial_number(int(entry.serial, 16)).revocation_date(utc(at))
    reason = REASONS.get(certificates.reason_named(entry.reason or "") or "")
    if reason is not None:
        builder = builder.add_extension(x509.CRLReason(reason), critical=False)
    return builder.build()
