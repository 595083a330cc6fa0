"""Private keys as PEM, plain or sealed with a passphrase.

A sealed key is PKCS#8, encrypted under a secret that argon2id derives from the passphrase; the line above the
PEM block holds the salt and the cost, so that both can change from file to file.
"""

from __future__ import annotations

import re
import secrets

from argon2.exceptions import HashingError
from argon2.low_level import Type, hash_secret_raw
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from broker.errors import BrokerError

# RFC 9106, section 4, second recommended choice: 64 MiB, 3 passes, 4 lanes.
MEMORY_KIB, PASSES, LANES = 65536, 3, 4
_MAX_MEMORY_KIB, _MAX_PASSES, _MAX_LANES = 1 << 21, 64, 64

_HEADER = re.compile(rb"argon2id m=(\d+),t=(\d+),p=(\d+),salt=([0-9a-f]{32})\n")


class SealedKey(BrokerError):
    """The private key cannot be opened."""

    code = "sealed_key"


def seal(key: ec.EllipticCurvePrivateKey, passphrase: str | None) -> bytes:
    """PEM of the key; sealed when a passphrase is given."""
    if passphrase is None:
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    salt = secrets.token_bytes(16)
    secret = _derive(passphrase, salt, MEMORY_KIB, PASSES, LANES)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(secret))
    return f"argon2id m={MEMORY_KIB},t={PASSES},p={LANES},salt={salt.hex()}\n".encode() + pem


def unseal(data: bytes, passphrase: str | None) -> ec.EllipticCurvePrivateKey:
    """The key. Raises SealedKey: a passphrase missing or wrong, or a file that is not such a key."""
    header = _HEADER.match(data)
    if header is None:
        # A passphrase with a plain file is no error: the file's mode protects it.
        return _load(data, None)
    if passphrase is None:
        raise SealedKey("It is sealed and no passphrase was given.")
    memory, passes, lanes = (int(header[group]) for group in (1, 2, 3))
    if memory > _MAX_MEMORY_KIB or passes > _MAX_PASSES or not 1 <= lanes <= _MAX_LANES:
        raise SealedKey("The cost it names is out of bounds.")
    secret = _derive(passphrase, bytes.fromhex(header[4].decode()), memory, passes, lanes)
    return _load(data[header.end() :], secret)


def _load(pem: bytes, secret: bytes | None) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(pem, secret)
    except (ValueError, TypeError) as error:
        reason = "The passphrase is wrong." if secret else "It is not an unencrypted PKCS#8 PEM file."
        raise SealedKey(reason) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SealedKey("It is not an elliptic curve key.")
    return key


def _derive(passphrase: str, salt: bytes, memory: int, passes: int, lanes: int) -> bytes:
    try:
        raw = hash_secret_raw(passphrase.encode(), salt, passes, memory, lanes, 32, Type.ID)
    except HashingError as error:
        raise SealedKey("The cost it names is not one of argon2id's.") from error
    return raw.hex().encode()
