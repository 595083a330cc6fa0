"""TLS contexts. The TLS layer demands our CA; dates, purpose and revocation are judged per request."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from broker.errors import SettingsError
from broker.web import purpose

# X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which the ssl module does not name.
NO_CHECK_TIME = 0x200000
ALPN = ["http/1.1"]
# TLS 1.2 with forward secrecy and authenticated encryption only; TLS 1.3 has its own, fixed list.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


def server_context(cert: Path, key: Path, ca: Path, *, require_client: bool = False) -> ssl.SSLContext:
    """For listeners. A client certificate of another CA fails the handshake; an expired one of ours does not.

    `require_client` also fails the handshake without one, and with one that is not for clients; else health
    can be read without, and the purpose is judged per request.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _common(context, ca)
    context.load_cert_chain(cert, key)
    context.verify_mode = ssl.CERT_REQUIRED if require_client else ssl.CERT_OPTIONAL
    # An expired certificate must reach the request, where it gets the 403 that says so.
    context.verify_flags |= NO_CHECK_TIME
    if not require_client:
        purpose.accept_any(context)  # so must one that is not for clients
    # A resumed session would outlive what a new handshake is told.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    return context


def browser_context(cert: Path, key: Path, ca: Path) -> ssl.SSLContext:
    """For listeners that browsers come to: nobody is asked for a client certificate.

    Raises SettingsError where certificate and key cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _common(context, ca)
    for path in (cert, key):
        if not os.access(path, os.R_OK):
            raise SettingsError(f"{path} is not there, or cannot be read; browsers come over TLS here.")
    try:
        # Nobody is asked for a passphrase on a terminal.
        context.load_cert_chain(cert, key, password="")
    except ssl.SSLError as error:
        raise SettingsError(
            f"{cert} and {key} are not a certificate and its key, in PEM and without a passphrase "
            f"({error.reason or 'unreadable'})."
        ) from None
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    return context


def client_context(ca: Path, cert: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """For callers of our own servers: our CA only, host names checked, with a client certificate if given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _common(context, ca)
    if cert is not None:
        context.load_cert_chain(cert, key)
    return context


def public_context(extra: Path | None, setting: str) -> ssl.SSLContext:
    """For callers of others' servers: the system's CAs, and those of `extra` (PEM), which `setting` names.

    Raises SettingsError.
    """
    context = ssl.create_default_context()
    if extra is not None:
        try:
            context.load_verify_locations(extra)
        except OSError as error:
            why = "holds no CA certificates in PEM" if isinstance(error, ssl.SSLError) else error.strerror
            raise SettingsError(f"{setting} (BROKER_{setting.upper()}): {extra}: {why}.") from None
    return context


def _common(context: ssl.SSLContext, ca: Path) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols(ALPN)
    context.load_verify_locations(ca)
