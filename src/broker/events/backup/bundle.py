"""What of an installation opens or signs something: gathered to be sealed, and put back in its place.

The clients' keys are those of now, also for older backups beside this one: a key that was destroyed is gone
from every backup of the directory once the next one is made. What people took back is told for the same
reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from broker.events import directory
from broker.events.backup import layout, sealing
from broker.events.backup.layout import BackupDamaged
from broker.events.connection import Redis, call, text
from broker.events.digests_key import PUBLIC_FILES
from broker.events.keys import ControlKeys
from broker.settings import Settings

KEYRING: Final = "keys/keyring"
CA_KEY: Final = "certs/ca.key"
NEEDED: Final = frozenset({KEYRING, CA_KEY, "keys/token-keys", "keys/digest-key"})
"""Without which an installation would not be the same."""
_PUBLIC: Final = (".crt", ".pub")
_PRIVATE_PEM: Final = b"PRIVATE KEY"


class Bundle(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`files` by their path in a data directory; `signers` are public keys of digests, in hex.

    `erased` clients, `revoked` certificates (fingerprint → reason) and `disabled` users (ids) stay so after a
    restore of a backup that does not know of it.
    """

    log_id: str
    made_at: str
    control: str
    """The id of the control stream's last event that the clients' keys are certainly not older than."""
    signers: list[str]
    files: dict[str, bytes]
    client_keys: dict[str, bytes]
    erased: list[str]
    revoked: dict[str, str]
    disabled: list[str]

    def __repr__(self) -> str:
        return f"<Bundle of {self.log_id}, {self.made_at}>"


def seal(bundle: Bundle, passphrase: str) -> bytes:
    """The file with the keys."""
    return sealing.seal(msgspec.msgpack.encode(bundle), passphrase, _purpose(bundle.log_id))


def unseal(sealed: bytes, passphrase: str, log_id: str) -> Bundle:
    """The inverse. Raises WrongPassphrase, BackupDamaged."""
    content = sealing.unseal(sealed, passphrase, _purpose(log_id))
    try:
        return msgspec.msgpack.decode(content, type=Bundle)
    except msgspec.MsgspecError:
        raise BackupDamaged("The keys are of a format that this version does not read.") from None


def of_another(sealed: bytes, log_id: str) -> bool:
    """Whether a file is the keys of another log."""
    return sealing.purpose_of(sealed) not in {None, _purpose(log_id)}


def _purpose(log_id: str) -> str:
    return f"backup keys {layout.FORMAT} {log_id}"


async def gathered(
    redis: Redis, keys: ControlKeys, settings: Settings, *, log_id: str, made_at: str, control: str
) -> Bundle:
    """The keys of a log and of its installation, as they are now. Raises LogUnavailable, OSError."""
    # Read before the registry: of a client that is erased meanwhile no key is kept.
    stored: Any = await call(redis.hgetall(keys.client_keys))
    clients = await directory.clients(redis, keys)
    certificates = await directory.certificates(redis, keys)
    users = await directory.users(redis, keys)
    erased = {one.client_id for one in clients if one.status == "erased"}
    return Bundle(
        log_id=log_id,
        made_at=made_at,
        control=control,
        signers=sorted(public_keys(settings.certs_dir)),
        files={path: file.read_bytes() for path, file in files_of(settings)},
        client_keys={text(name): wrapped for name, wrapped in stored.items() if text(name) not in erased},
        erased=sorted(erased),
        revoked={
            one.fingerprint: one.reason or "unspecified" for one in certificates if one.status == "revoked"
        },
        disabled=sorted(one.user_id for one in users if one.disabled),
    )


def files_of(settings: Settings) -> Iterator[tuple[str, Path]]:
    """Every file with a secret, and the certificates that belong to them, by path in a data directory."""
    yield KEYRING, settings.keyring_path
    for path, file in _files(settings.data_dir / "keys", "keys"):
        if path != KEYRING:
            yield path, file
    if settings.ca_key_path.exists():
        yield CA_KEY, settings.ca_key_path
    for path, file in _files(settings.certs_dir, "certs"):
        if path != CA_KEY:
            yield path, file
    password = settings.data_dir / "admin-password"
    if password.exists():
        yield password.name, password


def public_keys(certs: Path) -> set[str]:
    """The public keys of digests in a directory of certificates, in hex."""
    return {key for path in sorted(certs.glob(PUBLIC_FILES)) for key in public_keys_in(path)}


def public_keys_in(path: Path) -> set[str]:
    """The public key of digests in a PEM file, in hex; none where it holds another thing."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except ValueError:
        return set()
    if not isinstance(key, Ed25519PublicKey):
        return set()
    return {key.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()}


def _files(root: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    for file in sorted(root.rglob("*")):
        # Locks and drafts are of this moment.
        if file.is_file() and not file.name.startswith(".") and file.suffix != ".lock":
            yield f"{prefix}/{file.relative_to(root).as_posix()}", file


def is_public(path: str, content: bytes) -> bool:
    """Whether everybody may read a file: certificates and public keys."""
    return path.endswith(_PUBLIC) and _PRIVATE_PEM not in content
