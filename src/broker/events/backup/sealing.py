"""Sealing under a passphrase: AES-256-GCM with a key that argon2id derives from it (RFC 9106)."""

from __future__ import annotations

import os
from typing import Annotated, Final, Literal

import msgspec
from argon2 import low_level
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import Meta

from broker.events.backup.layout import BackupDamaged, BackupError

# RFC 9106, section 4, second recommended option: 64 MiB, three passes, four lanes.
TIME_COST, MEMORY_KIB, LANES = 3, 65_536, 4
_NONCE: Final = 12


class WrongPassphrase(BackupError):
    """The passphrase is another one."""

    code = "wrong_passphrase"


class _Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal[1]
    purpose: str
    kdf: Literal["argon2id"]
    time_cost: Annotated[int, Meta(ge=1, le=100)]
    memory_kib: Annotated[int, Meta(ge=8, le=4_194_304)]
    lanes: Annotated[int, Meta(ge=1, le=64)]
    salt: Annotated[bytes, Meta(min_length=16, max_length=64)]
    nonce: Annotated[bytes, Meta(min_length=_NONCE, max_length=_NONCE)]
    ciphertext: bytes


def seal(content: bytes, passphrase: str, purpose: str) -> bytes:
    """The file; good for this purpose alone."""
    fresh = _Sealed(
        1, purpose, "argon2id", TIME_COST, MEMORY_KIB, LANES, os.urandom(16), os.urandom(_NONCE), b""
    )
    ciphertext = _cipher(fresh, passphrase).encrypt(fresh.nonce, content, _aad(fresh))
    return msgspec.json.encode(msgspec.structs.replace(fresh, ciphertext=ciphertext))


def unseal(sealed: bytes, passphrase: str, purpose: str) -> bytes:
    """The content. Raises WrongPassphrase, also where the file was changed, and BackupDamaged."""
    try:
        found = msgspec.json.decode(sealed, type=_Sealed)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise BackupDamaged("The file with the keys cannot be read.") from None
    if found.purpose != purpose:
        raise BackupDamaged("The file with the keys is of something else.")
    try:
        return _cipher(found, passphrase).decrypt(found.nonce, found.ciphertext, _aad(found))
    except InvalidTag:
        raise WrongPassphrase(
            "The passphrase is another one than the keys are sealed with, or their file was changed."
        ) from None


def purpose_of(sealed: bytes) -> str | None:
    """What a file says that it is good for; None for what is no such file."""
    try:
        return msgspec.json.decode(sealed, type=_Sealed).purpose
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _cipher(sealed: _Sealed, passphrase: str) -> AESGCM:
    return AESGCM(
        low_level.hash_secret_raw(
            passphrase.encode(),
            sealed.salt,
            time_cost=sealed.time_cost,
            memory_cost=sealed.memory_kib,
            parallelism=sealed.lanes,
            hash_len=32,
            type=low_level.Type.ID,
        )
    )


def _aad(sealed: _Sealed) -> bytes:
    return msgspec.msgpack.encode(
        (sealed.format, sealed.purpose, sealed.kdf, sealed.time_cost, sealed.memory_kib, sealed.lanes)
    )
