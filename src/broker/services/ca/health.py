"""What is wrong with certificate files, for whoever checks an installation; the CA's key is not needed."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from broker import clock
from broker.errors import BrokerError
from broker.services.ca import authority


def problem(certificate: Path, key: Path | None, ca: Path, *, now_ms: int | None = None) -> str | None:
    """Why this certificate is of no use now, None when it is: dates, signature of `ca`, its own `key`."""
    now = clock.now_ms() if now_ms is None else now_ms
    for path in (certificate, key, ca):
        if path is not None and not path.is_file():
            return f"{path} is missing"
    try:
        found = authority.read_certificate(certificate)
        parsed, signer = _parsed(certificate), _parsed(ca)
    except (BrokerError, OSError, ValueError) as error:
        return getattr(error, "detail", "") or str(error)
    if found.not_before_ms > now:
        return f"{certificate} is not valid before {clock.iso(found.not_before_ms)[:10]}"
    if found.not_after_ms <= now:
        return f"{certificate} expired on {clock.iso(found.not_after_ms)[:10]}"
    try:
        parsed.verify_directly_issued_by(signer)
    except (InvalidSignature, ValueError, TypeError):
        return f"{certificate} is not signed by {ca}"
    return None if key is None else _mismatch(parsed, certificate, key)


def _parsed(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def _mismatch(certificate: x509.Certificate, path: Path, key: Path) -> str | None:
    """Whether the key is another certificate's. One under a passphrase of its owner's cannot be compared."""
    try:
        private = load_pem_private_key(key.read_bytes(), None)
    except TypeError:
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "is not a PEM private key"
        return f"{key}: {reason}"
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if private.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        return f"{key} is not the key of {path}"
    return None
