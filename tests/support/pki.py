"""A private CA in a directory, and certificates of it, good and bad."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from msgspec import structs

from broker.domain.certificates import Issued
from broker.services.ca import files, profiles
from broker.services.ca.authority import Authority, describe
from broker.web import tls


class Pki:
    """A CA in a directory, and certificates of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority.create(directory)
        self.ca = directory / "ca.crt"
        self.server = self.write("server", self.authority.issue("server", "server"))

    def write(self, name: str, issued: Issued) -> tuple[Path, Path]:
        paths = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        files.write_pair(
            *paths, certificate_pem=issued.certificate_pem.encode(), key_pem=issued.private_key_pem.encode()
        )
        return paths

    def client(self, name: str = "demo", role: str = "producer") -> tuple[Path, Path, Issued]:
        issued = self.authority.issue(name, role)
        return *self.write(name, issued), issued

    def expired(self, name: str = "late") -> tuple[Path, Path, Issued]:
        """A client certificate of this CA that ended yesterday."""
        return self._signed(
            name, profiles.purposes_of("producer"), datetime.now(UTC) - timedelta(days=31), days=30
        )

    def for_servers(self, name: str = "shop") -> tuple[Path, Path, Issued]:
        """A certificate of this CA that is for TLS servers only; the authority itself issues none such to clients."""
        return self._signed(name, [ExtendedKeyUsageOID.SERVER_AUTH], datetime.now(UTC), days=30)

    def _signed(self, name: str, purposes, start: datetime, *, days: int) -> tuple[Path, Path, Issued]:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = profiles.leaf_builder(
            self.authority.certificate,
            key.public_key(),
            profiles.subject(name, "producer"),
            purposes=purposes,
            names=[],
            start=start,
            end=start + timedelta(days=days),
        )
        issued = describe(builder.sign(self.authority._key, hashes.SHA256()), key)
        return *self.write(name, issued), issued

    def tampered(self, name: str = "forged", *, claims: str = "admin1") -> tuple[Path, Path]:
        """A certificate of this CA in which somebody wrote another name of the same length; the key is its own."""
        issued = self.authority.issue("a" * len(claims), "producer")
        der = x509.load_pem_x509_certificate(issued.certificate_pem.encode()).public_bytes(Encoding.DER)
        forged = x509.load_der_x509_certificate(der.replace(b"a" * len(claims), claims.encode()))
        pem = forged.public_bytes(Encoding.PEM).decode()
        return self.write(name, structs.replace(issued, certificate_pem=pem))

    def self_signed(self, name: str = "self") -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        subject = profiles.subject(name, "producer")
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
        )
        return self.write(name, describe(builder.sign(key, hashes.SHA256()), key))

    def server_context(self, *, require_client: bool = False) -> ssl.SSLContext:
        return tls.server_context(*self.server, self.ca, require_client=require_client)

    def client_context(self, cert: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
        return tls.client_context(self.ca, cert, key)
