"""The keyring: one private file with the master keys, outside Redis, MySQL and every data backup.

Master keys wrap the clients' keys. A key is `added` (every process can load it), then `active` (new wraps use
it), then `retired` (it still unwraps). The index key is never rotated: it hashes idempotency keys, whose
hashes must stay comparable. With a passphrase the file is sealed under a key derived by argon2id (RFC 9106).
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import Meta, structs

from broker.errors import BrokerError, Conflict, KeyUnavailable, Undecryptable
from broker.events import private_files

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
FORMAT: Final = 1
# RFC 9106, section 4, second recommended option: 64 MiB, three passes, four lanes.
_TIME_COST, _MEMORY_KIB, _LANES = 3, 65_536, 4

State = Literal["added", "active", "retired"]
Key = Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]


class KeyringError(BrokerError):
    """The keyring cannot be used."""

    code = "keyring"


class _Secret(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class _MasterKey(_Secret, frozen=True, forbid_unknown_fields=True):
    id: str
    state: State
    key: Key


class _Contents(_Secret, frozen=True, forbid_unknown_fields=True):
    index_key: Key
    keys: list[_MasterKey]


class _Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kdf: Literal["argon2id"]
    time_cost: Annotated[int, Meta(ge=1, le=100)]
    memory_kib: Annotated[int, Meta(ge=8, le=4_194_304)]
    lanes: Annotated[int, Meta(ge=1, le=64)]
    salt: Annotated[bytes, Meta(min_length=16)]
    nonce: Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
    ciphertext: bytes


class _File(_Secret, frozen=True, forbid_unknown_fields=True):
    format: Literal[1]
    plain: _Contents | None = None
    sealed: _Sealed | None = None


_Change = Callable[[list[_MasterKey]], list[_MasterKey]]


class Keyring:
    """The master keys in memory. Keys leave it only as what they wrapped or unwrapped."""

    def __init__(self, path: Path, contents: _Contents, passphrase: str | None) -> None:
        self.path = path
        self._passphrase = passphrase
        self._stamp: tuple[int, int, int] | None = None
        self._take(contents)

    def __repr__(self) -> str:
        return f"<Keyring {self.path}: {', '.join(f'{k} {s}' for k, s in self.states().items())}>"

    def __reduce__(self) -> str:
        raise TypeError("A keyring is not to be copied out of its process.")

    @classmethod
    def create(cls, path: Path, passphrase: str | None = None) -> Keyring:
        """Make the file with one active master key. Raises KeyringError if there is one already."""
        first = _MasterKey(_new_id(), "active", secrets.token_bytes(KEY_BYTES))
        contents = _Contents(secrets.token_bytes(KEY_BYTES), [first])
        try:
            with private_files.exclusive(path):
                if path.exists():
                    raise KeyringError(
                        f"{path} exists already; a new one would make every message unreadable."
                    )
                private_files.write(path, _encode(contents, passphrase))
        except OSError as error:
            raise KeyringError(f"{path}: {error.strerror}.") from None
        return cls.load(path, passphrase)

    @classmethod
    def load(cls, path: Path, passphrase: str | None = None) -> Keyring:
        """Read the file. Raises KeyringError: missing, readable by others, damaged, or another passphrase."""
        stamp, content = _read(path)
        ring = cls(path, _decode(path, content, passphrase), passphrase)
        ring._stamp = stamp
        return ring

    def reload_if_changed(self) -> bool:
        """Read the file again when it is another one than was read last. Raises KeyringError, keys kept."""
        try:
            stamp = _stamp(self.path.stat())
        except OSError as error:
            raise KeyringError(f"{self.path}: {error.strerror}.") from None
        if stamp == self._stamp:
            return False
        stamp, content = _read(self.path)
        self._take(_decode(self.path, content, self._passphrase))
        self._stamp = stamp
        return True

    @property
    def active_id(self) -> str:
        """The id of the key that wraps."""
        return self._active

    @property
    def index_key(self) -> bytes:
        """32 bytes, the same for ever: for hashes that must stay comparable."""
        return self._contents.index_key

    def states(self) -> dict[str, State]:
        """Key ids and their states, oldest first."""
        return {key.id: key.state for key in self._contents.keys}

    def wrap(self, plain: bytes, aad: bytes) -> tuple[str, bytes]:
        """Id of the active key, and nonce + ciphertext under it, bound to `aad`."""
        nonce = os.urandom(NONCE_BYTES)
        return self._active, nonce + self._ciphers[self._active].encrypt(nonce, plain, aad)

    def unwrap(self, key_id: str, wrapped: bytes, aad: bytes) -> bytes:
        """The inverse of `wrap`. Raises KeyUnavailable for an unknown key id, Undecryptable."""
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise KeyUnavailable(f"The keyring has no master key {key_id}.")
        try:
            return cipher.decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], aad)
        except (InvalidTag, ValueError):
            raise Undecryptable(f"A key wrapped by master key {key_id} was changed.") from None

    def add(self) -> str:
        """Put a new master key beside the others, not yet used; its id. Raises KeyringError."""
        key = _MasterKey(_new_id(), "added", secrets.token_bytes(KEY_BYTES))
        self._change(lambda keys: [*keys, key])
        return key.id

    def activate(self, key_id: str) -> None:
        """Wrap with this key from now on; the active one retires. Raises KeyUnavailable, KeyringError."""

        def change(keys: list[_MasterKey]) -> list[_MasterKey]:
            if key_id not in {key.id for key in keys}:
                raise KeyUnavailable(f"The keyring has no master key {key_id}.")
            return [_with_active(key, key_id) for key in keys]

        self._change(change)

    def remove(self, key_id: str) -> None:
        """Forget a retired key for ever: what only it wrapped is lost. Raises Conflict, KeyringError."""

        def change(keys: list[_MasterKey]) -> list[_MasterKey]:
            if {key.id: key.state for key in keys}.get(key_id) != "retired":
                raise Conflict(f"{key_id} is not a retired master key.")
            return [key for key in keys if key.id != key_id]

        self._change(change)

    def change_passphrase(self, passphrase: str | None) -> None:
        """Seal the file under another passphrase, or store it plain with None. Raises KeyringError."""
        self._change(lambda keys: keys, passphrase)

    def _change(self, change: _Change, passphrase: str | msgspec.UnsetType | None = msgspec.UNSET) -> None:
        chosen = self._passphrase if passphrase is msgspec.UNSET else passphrase
        try:
            with private_files.exclusive(self.path):
                # Another process may have added a key meanwhile; it must not be lost.
                self.reload_if_changed()
                contents = structs.replace(self._contents, keys=change(self._contents.keys))
                private_files.write(self.path, _encode(contents, chosen))
                self._stamp = _stamp(self.path.stat())
        except OSError as error:
            raise KeyringError(f"{self.path}: {error.strerror}.") from None
        self._passphrase = chosen
        self._take(contents)

    def _take(self, contents: _Contents) -> None:
        active = [key.id for key in contents.keys if key.state == "active"]
        if len(active) != 1 or len({key.id for key in contents.keys}) != len(contents.keys):
            raise KeyringError(f"{self.path} must hold exactly one active master key and no id twice.")
        self._contents = contents
        self._active = active[0]
        self._ciphers = {key.id: AESGCM(key.key) for key in contents.keys}


def _new_id() -> str:
    return f"m-{secrets.token_hex(4)}"


def _with_active(key: _MasterKey, active: str) -> _MasterKey:
    if key.id == active:
        return structs.replace(key, state="active")
    return structs.replace(key, state="retired") if key.state == "active" else key


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read(path: Path) -> tuple[tuple[int, int, int], bytes]:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            _check_private(path, status)
            return _stamp(status), file.read()
    except FileNotFoundError:
        raise KeyringError(
            f"{path} does not exist. `broker up` makes it; after a loss, restore its backup."
        ) from None
    except OSError as error:
        raise KeyringError(f"{path}: {error.strerror}.") from None


def _check_private(path: Path, status: os.stat_result) -> None:
    if sys.platform == "win32":  # there, access lists rule; the installer sets them on the directory
        return
    if status.st_mode & 0o077:
        raise KeyringError(
            f"{path} is open to other users (mode {status.st_mode & 0o777:04o}); run: chmod 600 {path}"
        )
    if status.st_uid not in {os.geteuid(), 0}:
        raise KeyringError(f"{path} belongs to user id {status.st_uid}, not to the one that runs the broker.")
    # Who can write to the directory can put another file in its place.
    if path.parent.stat().st_mode & 0o022:
        raise KeyringError(f"{path.parent} can be written to by other users; run: chmod 700 {path.parent}")


def _derive(passphrase: str, sealed: _Sealed) -> AESGCM:
    from argon2 import low_level

    key = low_level.hash_secret_raw(
        passphrase.encode(),
        sealed.salt,
        time_cost=sealed.time_cost,
        memory_cost=sealed.memory_kib,
        parallelism=sealed.lanes,
        hash_len=KEY_BYTES,
        type=low_level.Type.ID,
    )
    return AESGCM(key)


def _aad(sealed: _Sealed) -> bytes:
    parameters = (FORMAT, sealed.kdf, sealed.time_cost, sealed.memory_kib, sealed.lanes, sealed.salt)
    return msgspec.msgpack.encode(parameters)


def _encode(contents: _Contents, passphrase: str | None) -> bytes:
    if passphrase is None:
        return msgspec.json.encode(_File(FORMAT, plain=contents))
    salt, nonce = os.urandom(16), os.urandom(NONCE_BYTES)
    sealed = _Sealed("argon2id", _TIME_COST, _MEMORY_KIB, _LANES, salt, nonce, b"")
    ciphertext = _derive(passphrase, sealed).encrypt(nonce, msgspec.json.encode(contents), _aad(sealed))
    return msgspec.json.encode(_File(FORMAT, sealed=structs.replace(sealed, ciphertext=ciphertext)))


def _decode(path: Path, content: bytes, passphrase: str | None) -> _Contents:
    try:
        file = msgspec.json.decode(content, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        # The reason is left out: it may quote what the file holds.
        raise KeyringError(f"{path} is damaged or not a keyring; restore its backup.") from None
    if file.sealed is None:
        if file.plain is None:
            raise KeyringError(f"{path} is damaged: it holds no keys; restore its backup.")
        if passphrase is not None:
            raise KeyringError(f"{path} is not sealed, but a passphrase is set; unset key_passphrase.")
        return file.plain
    if passphrase is None:
        raise KeyringError(f"{path} is sealed; set key_passphrase (BROKER_KEY_PASSPHRASE).")
    sealed = file.sealed
    try:
        plain = _derive(passphrase, sealed).decrypt(sealed.nonce, sealed.ciphertext, _aad(sealed))
        return msgspec.json.decode(plain, type=_Contents)
    except (InvalidTag, msgspec.MsgspecError):
        raise KeyringError(f"{path}: the passphrase is another one, or the file was changed.") from None
