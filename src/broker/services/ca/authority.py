"""The private CA: makes itself, issues certificates with a key or for a request, signs revocation lists."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker import clock
from broker.domain import certificates
from broker.domain.certificates import CertificateEntry, Crl, Issued
from broker.errors import BrokerError, Conflict, NotFound, ValidationError
from broker.services.ca import profiles, revocation, sealing
from broker.services.ca.files import write_pair

CERTIFICATE_FILE = "ca.crt"
KEY_FILE = "ca.key"
AUTHORITY_DAYS = 3650
DAY_MS = 24 * 3600 * 1000
# Clocks of other machines may be a little behind.
BACKDATE_MS = 5 * 60 * 1000
MIN_RSA_BITS = 2048
CURVES = frozenset({"secp256r1", "secp384r1", "secp521r1"})
MAX_CSR_BYTES = 16 * 1024


class BrokenAuthority(BrokerError):
    """The files of the certificate authority do not belong together."""

    code = "broken_authority"


class Authority:
    """The CA's certificate and key in memory. Issuing writes nothing: files and registry are the caller's."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self._key = key

    @classmethod
    def create(
        cls, directory: Path, passphrase: str | None = None, key_file: Path | None = None
    ) -> Authority:
        """Make a CA (ECDSA P-256, ten years): `ca.crt`, and `ca.key` unless `key_file` is another place.

        Raises Conflict if there is one.
        """
        if (directory / CERTIFICATE_FILE).exists():
            raise Conflict(f"{directory / CERTIFICATE_FILE} exists.")
        key = ec.generate_private_key(ec.SECP256R1())
        start = clock.now_ms() - BACKDATE_MS
        # A random part in the name keeps two installations' authorities apart in one trust store.
        name = profiles.subject(f"Message Broker CA {x509.random_serial_number() % 16**8:08x}", "authority")
        builder = profiles.authority_builder(
            key, name, start=profiles.utc(start), end=profiles.utc(start + AUTHORITY_DAYS * DAY_MS)
        )
        certificate = builder.sign(key, hashes.SHA256())
        write_pair(
            directory / CERTIFICATE_FILE,
            key_file or directory / KEY_FILE,
            certificate_pem=certificate.public_bytes(Encoding.PEM),
            key_pem=sealing.seal(key, passphrase),
        )
        return cls(certificate, key)

    @classmethod
    def load(cls, directory: Path, passphrase: str | None = None, key_file: Path | None = None) -> Authority:
        """Read what `create` wrote. Raises NotFound, sealing.SealedKey or BrokenAuthority."""
        key_file = key_file or directory / KEY_FILE
        try:
            pem, sealed = (directory / CERTIFICATE_FILE).read_bytes(), key_file.read_bytes()
        except FileNotFoundError as error:
            raise NotFound(f"{error.filename} is missing.") from error
        try:
            certificate = x509.load_pem_x509_certificate(pem)
        except ValueError as error:
            raise BrokenAuthority(f"{CERTIFICATE_FILE} is not a PEM certificate.") from error
        key = sealing.unseal(sealed, passphrase)
        if _spki(certificate.public_key()) != _spki(key.public_key()):
            raise BrokenAuthority(f"{key_file} is not the key of {CERTIFICATE_FILE}.")
        return cls(certificate, key)

    def issued(self, path: Path) -> bool:
        """Whether the certificate in this file is of this authority. Raises NotFound, BrokenAuthority."""
        try:
            _pem_file(path).verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    @property
    def certificate_pem(self) -> str:
        """What others need in order to trust it."""
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def issue(
        self,
        name: str,
        role: str,
        *,
        validity_days: int = 365,
        csr_pem: str | bytes | None = None,
        dns: Iterable[str] = (),
        ips: Iterable[str] = (),
    ) -> Issued:
        """A certificate for `name` in `role`. A request gives the public key only; all else is ours to say.

        Gateway and server certificates serve TLS too, by `dns` and `ips` or else this machine's names.
        Raises ValidationError.
        """
        certificates.check_name(name)
        certificates.check_role(role)
        certificates.check_validity(validity_days)
        key = None if csr_pem is not None else ec.generate_private_key(ec.SECP256R1())
        public_key = key.public_key() if key else _requested_key(csr_pem or b"")
        now = clock.now_ms()
        limit = int(self.certificate.not_valid_after_utc.timestamp()) * 1000
        if now >= limit:
            raise ValidationError("validity_days", "the certificate authority itself has expired")
        builder = profiles.leaf_builder(
            self.certificate,
            public_key,
            profiles.subject(name, role),
            purposes=profiles.purposes_of(role),
            names=profiles.alternative_names(role, dns, ips),
            start=profiles.utc(now - BACKDATE_MS),
            end=profiles.utc(min(now + validity_days * DAY_MS, limit)),
        )
        return describe(builder.sign(self._key, hashes.SHA256()), key)

    def crl(self, known: Iterable[CertificateEntry], *, now_ms: int, next_update_ms: int) -> Crl:
        """The revocation list over those of `known` that were taken back."""
        return revocation.sign(
            self.certificate, self._key, known, now_ms=now_ms, next_update_ms=next_update_ms
        )


def describe(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey | None = None) -> Issued:
    """A certificate as the values that the registry and the answers carry."""
    return Issued(
        certificate_pem=certificate.public_bytes(Encoding.PEM).decode(),
        private_key_pem=sealing.seal(key, None).decode() if key else None,
        serial=f"{certificate.serial_number:x}",
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        not_before_ms=int(certificate.not_valid_before_utc.timestamp()) * 1000,
        not_after_ms=int(certificate.not_valid_after_utc.timestamp()) * 1000,
    )


def read_certificate(path: Path) -> Issued:
    """What a PEM file holds. Raises NotFound or BrokenAuthority."""
    return describe(_pem_file(path))


def names_of(path: Path) -> tuple[list[str], list[str]]:
    """DNS names and addresses of the certificate in a PEM file. Raises NotFound or BrokenAuthority."""
    return profiles.names_of(_pem_file(path))


def _pem_file(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFound(f"{path} is missing.") from error
    except ValueError as error:
        raise BrokenAuthority(f"{path} is not a PEM certificate.") from error


def expires_within(path: Path, days: float, *, now_ms: int | None = None) -> bool:
    """Whether the certificate in this file ends within so many days, or has ended: time to renew it."""
    now = clock.now_ms() if now_ms is None else now_ms
    return read_certificate(path).not_after_ms <= now + days * DAY_MS


def _requested_key(csr_pem: str | bytes) -> profiles.PublicKey:
    # Lone surrogates cannot be encoded; as `?` they make the PEM invalid, which is what it is.
    data = csr_pem.encode(errors="replace") if isinstance(csr_pem, str) else csr_pem
    if len(data) > MAX_CSR_BYTES:
        raise ValidationError("csr_pem", f"takes at most {MAX_CSR_BYTES} bytes")
    try:
        request = x509.load_pem_x509_csr(data)
        # The signature proves that the requester holds the private key.
        if not request.is_signature_valid:
            raise ValidationError("csr_pem", "its signature is not valid")
        key = request.public_key()
    except ValidationError:
        raise
    # Whatever the parser stumbles over, the request is what is wrong.
    except Exception as error:
        raise ValidationError("csr_pem", "is not a PEM certificate signing request") from error
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= MIN_RSA_BITS:
        return key
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in CURVES:
        return key
    raise ValidationError("csr_pem", "its key must be P-256, P-384, P-521, Ed25519 or RSA from 2048 bits")


def _spki(key: profiles.PublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
