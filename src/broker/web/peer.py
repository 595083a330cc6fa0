"""The client certificate of a connection, as requests see it in `scope["state"]["peer"]`."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.types import Scope

if TYPE_CHECKING:
    from cryptography.x509 import Certificate


class Peer(msgspec.Struct, frozen=True, dict=True):
    """A certificate that our CA signed. Requests need the fingerprint; the rest is read when asked."""

    fingerprint: str
    der: bytes

    @cached_property
    def _certificate(self) -> Certificate:
        from cryptography import x509

        return x509.load_der_x509_certificate(self.der)

    @cached_property
    def serial(self) -> str:
        """Lower hex."""
        return f"{self._certificate.serial_number:x}"

    @cached_property
    def subject(self) -> str:
        """RFC 4514, such as `CN=demo,OU=producer,O=Message Broker`."""
        return self._certificate.subject.rfc4514_string()

    @cached_property
    def for_clients(self) -> bool:
        """Whether it says that it is for TLS clients."""
        from cryptography.x509 import ExtendedKeyUsage, ExtensionNotFound
        from cryptography.x509.oid import ExtendedKeyUsageOID

        try:
            usage = self._certificate.extensions.get_extension_for_class(ExtendedKeyUsage).value
        except ExtensionNotFound:
            return False
        return ExtendedKeyUsageOID.CLIENT_AUTH in usage

    @cached_property
    def not_before_ms(self) -> int:
        """Milliseconds since the epoch."""
        return int(self._certificate.not_valid_before_utc.timestamp()) * 1000

    @cached_property
    def not_after_ms(self) -> int:
        """Milliseconds since the epoch."""
        return int(self._certificate.not_valid_after_utc.timestamp()) * 1000


def from_der(der: bytes) -> Peer:
    """The peer whose certificate this is."""
    return Peer(hashlib.sha256(der).hexdigest(), der)


def address(scope: Scope) -> str:
    """Where a request comes from; headers that a client can write say nothing."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def of_transport(transport: Any) -> Peer | None:
    """The peer of a connection; None without TLS or without a client certificate."""
    tls = transport.get_extra_info("ssl_object")
    der = tls.getpeercert(binary_form=True) if tls is not None else None
    return from_der(der) if der else None
