"""Lets certificates of ours that are not for clients reach the request, where the 403 says what is wrong.

OpenSSL has a call for it that the ssl module does not offer, so it is made past the module, on the pointer
that CPython's context begins with. Where that cannot be done such a certificate fails the handshake.
"""

from __future__ import annotations

import _ssl
import ctypes
import ssl
import sys

# X509_PURPOSE_ANY of OpenSSL's x509v3.h.
ANY = 7
_KNOWN = (3, 11) <= sys.version_info[:2] <= (3, 14)


def accept_any(context: ssl.SSLContext) -> bool:
    """Whether `context` now verifies peers without asking what their certificates are for.

    Whoever serves with it must ask by `peer.Peer.for_clients`.
    """
    library = getattr(_ssl, "__file__", None)
    if sys.implementation.name != "cpython" or not _KNOWN or library is None:
        return False
    try:
        # Symbols are looked for in what this library was linked with, too: the OpenSSL in use.
        openssl = ctypes.CDLL(library)
        set_purpose, verify_mode = openssl.SSL_CTX_set_purpose, openssl.SSL_CTX_get_verify_mode
    except (OSError, AttributeError):
        return False
    pointer = ctypes.c_void_p.from_address(id(context) + object.__basicsize__)
    if pointer.value is None or verify_mode(pointer) != context.verify_mode:
        return False
    return bool(set_purpose(pointer, ANY) == 1)
