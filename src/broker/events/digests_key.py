"""The key that signs digests: one private file beside the keyring, sealed by its master key.

It signs nothing else. Its public half lies beside the CA's certificate, for auditors.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec import Meta

from broker.errors import KeyUnavailable, Undecryptable
from broker.events import private_files
from broker.events.keyring import Keyring
from broker.settings import Settings

PUBLIC_FILE: Final = "digests.pub"
PUBLIC_FILES: Final = "digests*.pub"
"""The newest, and those of keys that were lost."""
PUBLIC_MODE: Final = 0o644
_AAD: Final = b"broker digest key 1"


class DigestKeyError(KeyUnavailable):
    """The key that signs digests of the history cannot be used."""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    master_key: str
    sealed: bytes


class _Seed(msgspec.Struct, frozen=True, array_like=True):
    seed: Annotated[bytes, Meta(min_length=32, max_length=32)]

    def __repr__(self) -> str:
        return "<digest key>"


class DigestKey:
    """The key in memory."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        """32 bytes."""

    def __repr__(self) -> str:
        return f"<DigestKey {self.public.hex()}>"

    def __reduce__(self) -> str:
        raise TypeError("A signing key is not to be copied out of its process.")

    @classmethod
    def open(cls, settings: Settings, keyring: Keyring) -> DigestKey:
        """Read the file, made if missing; publish the public half. Raises DigestKeyError, KeyUnavailable."""
        path = settings.data_dir / "keys" / "digest-key"
        try:
            with private_files.exclusive(path):
                found, master = _load(path, keyring) if path.exists() else (_Seed(os.urandom(32)), "")
                # The master key that seals it may be removed one day.
                if master != keyring.active_id:
                    private_files.write(path, _sealed(found, keyring))
            key = cls(found.seed)
            key.publish(settings.certs_dir / PUBLIC_FILE)
        except OSError as error:
            raise DigestKeyError(f"{path}: {error.strerror}.") from None
        return key

    def sign(self, content: bytes) -> bytes:
        """64 bytes."""
        return self._key.sign(content)

    def publish(self, path: Path) -> None:
        """Write the public half as PEM, for everybody to read; another key's is kept. Raises OSError."""
        pem = self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        there = path.read_bytes() if path.exists() else None
        if there == pem:
            return
        if there is not None:
            # What it signed goes on to be verified with it.
            path.rename(path.with_stem(f"{path.stem}-{hashlib.sha256(there).hexdigest()[:8]}"))
        private_files.write(path, pem)
        path.chmod(PUBLIC_MODE)


def _sealed(seed: _Seed, keyring: Keyring) -> bytes:
    return msgspec.json.encode(_File(*keyring.wrap(msgspec.msgpack.encode(seed), _AAD)))


def _load(path: Path, keyring: Keyring) -> tuple[_Seed, str]:
    """The key, and the id of the master key that seals it."""
    if sys.platform != "win32" and (mode := path.stat().st_mode & 0o777) & 0o077:
        raise DigestKeyError(f"{path} is open to other users (mode {mode:04o}); run: chmod 600 {path}")
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
        return msgspec.msgpack.decode(
            keyring.unwrap(file.master_key, file.sealed, _AAD), type=_Seed
        ), file.master_key
    except (msgspec.MsgspecError, UnicodeDecodeError):
        # The reason is left out: it may quote what the file holds.
        raise DigestKeyError(f"{path} is damaged; restore it from its backup.") from None
    except Undecryptable as error:
        raise DigestKeyError(f"{path}: {error}") from None
