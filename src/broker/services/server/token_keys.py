"""The keys that sign access tokens: one private file sealed by the keyring's master key.

One key signs; those it replaced still verify, so that a rotation logs nobody out. Every server needs the same
file, as it needs the same keyring; the first to start makes it.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from joserfc.jwk import OKPKey
from msgspec import Meta, structs

from broker import clock
from broker.errors import KeyUnavailable, Undecryptable
from broker.events import private_files
from broker.events.keyring import Keyring

KEPT_MS: Final = 24 * 3_600_000
"""How long a replaced key still verifies; far longer than a token lives."""
_AAD: Final = b"broker token keys 1"


class TokenKeyError(KeyUnavailable):
    """The keys that sign access tokens cannot be used."""


class _Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    seed: Annotated[bytes, Meta(min_length=32, max_length=32)]
    replaced_at: int | None = None

    def __repr__(self) -> str:
        return f"<token key {self.id}>"


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    master_key: str
    sealed: bytes


class TokenKeys:
    """The keys in memory; a file that another process changed is read again when needed."""

    def __init__(self, path: Path, keyring: Keyring) -> None:
        self.path = path
        self._keyring = keyring
        self._stamp: tuple[int, int] | None = None
        self._keys: dict[str, OKPKey] = {}
        self._active = ""

    def __repr__(self) -> str:
        return f"<TokenKeys {self.path}: {', '.join(self._keys)}>"

    def __reduce__(self) -> str:
        raise TypeError("Signing keys are not to be copied out of their process.")

    @classmethod
    def open(cls, path: Path, keyring: Keyring) -> TokenKeys:
        """Read the file, made if missing. Raises TokenKeyError, or KeyUnavailable without its master key."""
        keys = cls(path, keyring)
        try:
            # The master key that seals it may be removed one day.
            if not path.exists() or keys._load() != keyring.active_id:
                with private_files.exclusive(path):
                    keys._write(keys._read()[1] if path.exists() else [_new()])
                keys._load()
        except OSError as error:
            raise TokenKeyError(f"{path}: {error.strerror}.") from None
        return keys

    def states(self) -> dict[str, str]:
        """Key ids: `active` signs, `retired` still verify. Raises as `open`."""
        self._reload()
        return {key: "active" if key == self._active else "retired" for key in self._keys}

    def signing(self) -> tuple[str, OKPKey]:
        """Id and key to sign with. Raises as `open`."""
        self._reload()
        return self._active, self._keys[self._active]

    def verifying(self, key_id: str) -> OKPKey | None:
        """The key of this id, one that another process has made just now too. Raises as `open`."""
        # Looked at each time, so that a key that was dropped is gone everywhere at once.
        self._reload()
        return self._keys.get(key_id)

    def rotate(self, *, drop: bool = False) -> str:
        """Sign with a new key from now on; its id. `drop`: those before verify nothing any more."""
        now = clock.now_ms()
        fresh = _new()
        try:
            with private_files.exclusive(self.path):
                before = [] if drop else self._read()[1]
                replaced = [structs.replace(key, replaced_at=key.replaced_at or now) for key in before]
                kept = [key for key in replaced if now - (key.replaced_at or now) < KEPT_MS]
                self._write([fresh, *kept])
            self._load()
        except OSError as error:
            raise TokenKeyError(f"{self.path}: {error.strerror}.") from None
        return fresh.id

    def _reload(self) -> None:
        try:
            if self._look() != self._stamp:
                self._load()
        except OSError as error:
            raise TokenKeyError(f"{self.path}: {error.strerror}.") from None

    def _look(self) -> tuple[int, int]:
        status = self.path.stat()
        return status.st_ino, status.st_mtime_ns

    def _load(self) -> str:
        """Take what the file holds; the id of the master key that seals it."""
        stamp = self._look()
        master, keys = self._read()
        active = [key.id for key in keys if key.replaced_at is None]
        if len(active) != 1:
            raise TokenKeyError(f"{self.path} must hold exactly one key that signs.")
        self._keys = {
            key.id: OKPKey.import_key(Ed25519PrivateKey.from_private_bytes(key.seed)) for key in keys
        }
        self._active, self._stamp = active[0], stamp
        return master

    def _read(self) -> tuple[str, list[_Key]]:
        if sys.platform != "win32" and (mode := self.path.stat().st_mode & 0o777) & 0o077:
            raise TokenKeyError(
                f"{self.path} is open to other users (mode {mode:04o}); run: chmod 600 {self.path}"
            )
        try:
            file = msgspec.json.decode(self.path.read_bytes(), type=_File)
            plain = self._keyring.unwrap(file.master_key, file.sealed, _AAD)
            return file.master_key, msgspec.msgpack.decode(plain, type=list[_Key])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            # The reason is left out: it may quote what the file holds.
            raise TokenKeyError(f"{self.path} is damaged; without it a new one is made.") from None
        except Undecryptable as error:
            raise TokenKeyError(f"{self.path}: {error}") from None

    def _write(self, keys: list[_Key]) -> None:
        master, sealed = self._keyring.wrap(msgspec.msgpack.encode(keys), _AAD)
        private_files.write(self.path, msgspec.json.encode(_File(master, sealed)))


def _new() -> _Key:
    return _Key(f"t-{secrets.token_hex(4)}", os.urandom(32))
