"""What a certificate of each kind says: names, key usage, purposes (RFC 5280)."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from broker.errors import ValidationError

ORGANISATION = "Message Broker"
SERVER_ROLES = frozenset({"gateway", "server"})
MAX_DNS = 253
# RFC 1123, section 2.1; a wildcard may stand for the first label (RFC 9525, section 6.3).
_DNS = re.compile(r"(\*\.)?[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")

PublicKey = CertificatePublicKeyTypes


def subject(name: str, role: str) -> x509.Name:
    """CN = name, O = "Message Broker", OU = role."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANISATION),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def authority_builder(
    key: ec.EllipticCurvePrivateKey, name: x509.Name, *, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    """A self-signed authority that may sign leaves and CRLs, and no further authority."""
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        _builder(name, name, key.public_key(), start, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
    )


def leaf_builder(
    issuer: x509.Certificate,
    public_key: PublicKey,
    name: x509.Name,
    *,
    purposes: Iterable[x509.ObjectIdentifier],
    names: Iterable[x509.GeneralName],
    start: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    """An end-entity certificate; `names` become the subject alternative names, if there are any."""
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _builder(name, issuer.subject, public_key, start, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(list(purposes)), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
    )
    names = list(names)
    return builder.add_extension(x509.SubjectAlternativeName(names), critical=False) if names else builder


def purposes_of(role: str) -> list[x509.ObjectIdentifier]:
    """Servers call each other too, so theirs serve both sides; clients' serve as clients only."""
    if role in SERVER_ROLES:
        return [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return [ExtendedKeyUsageOID.CLIENT_AUTH]


def alternative_names(role: str, dns: Iterable[str], ips: Iterable[str]) -> list[x509.GeneralName]:
    """The names asked for; a server role without any gets this machine's. Raises ValidationError."""
    dns, ips = [name.lower() for name in dns], list(ips)
    if role not in SERVER_ROLES and (dns or ips):
        raise ValidationError("dns" if dns else "ips", f"are for gateways and servers; a {role} has none")
    if role in SERVER_ROLES and not dns and not ips:
        dns, ips = local_names()
    for name in dns:
        if _is_address(name):
            raise ValidationError("dns", f"takes names; {name} is an address")
        if not _is_dns(name):
            raise ValidationError("dns", f"takes DNS names such as broker.example; {name[:64]!r} is none")
    found: list[x509.GeneralName] = [x509.DNSName(name) for name in dict.fromkeys(dns)]
    try:
        found += [x509.IPAddress(each) for each in dict.fromkeys(map(ipaddress.ip_address, ips))]
    except ValueError as error:
        raise ValidationError("ips", str(error)) from error
    return found


def names_of(certificate: x509.Certificate) -> tuple[list[str], list[str]]:
    """Its alternative names: DNS names and addresses."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return [], []
    addresses = names.get_values_for_type(x509.IPAddress)
    return names.get_values_for_type(x509.DNSName), [str(address) for address in addresses]


def local_names() -> tuple[list[str], list[str]]:
    """DNS names and addresses by which this machine's own processes reach each other."""
    host = socket.gethostname().lower()
    fits = _is_dns(host) and not host.replace(".", "").isdigit()
    return list(dict.fromkeys(["localhost", *([host] if fits else [])])), ["127.0.0.1", "::1"]


def _is_dns(name: str) -> bool:
    return len(name) <= MAX_DNS and _DNS.fullmatch(name) is not None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def utc(ms: int) -> datetime:
    """X.509 times have whole seconds."""
    return datetime.fromtimestamp(ms // 1000, UTC)


def _builder(
    name: x509.Name, issuer: x509.Name, public_key: PublicKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
