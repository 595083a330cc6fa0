"""The directory with the backups: files put whole, backups found, what belongs to none of them removed."""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from broker import directories
from broker.errors import Conflict, NotFound
from broker.events import private_files
from broker.events.archive.segments import Manifest
from broker.events.backup import layout
from broker.events.backup.layout import BackupDamaged, BackupError, File, Inventory, Snapshot, Whose

KEYS: Final = "keys"
_LOCK: Final = ".backup"
_IGNORED: Final = frozenset({f"{_LOCK}.lock", "lost+found"})
_DRAFT: Final = re.compile(r"\..+\.[0-9a-f]{12}\Z")
"""A file that was being written when its writer died."""


class Repository:
    """A directory of backups; its keys may lie in another one. Everything blocks.

    Raises BackupError for what the disk refuses.
    """

    def __init__(self, root: Path, keys: Path | None = None) -> None:
        self.root = root
        self.keys_root = keys or root / KEYS
        self.written = 0
        """Bytes, by this object."""

    # -- Files --------------------------------------------------------------------------------------------

    def put(self, path: str, content: bytes) -> None:
        """Make a file: whole and durable on return. One that is there and the same is left."""
        with self._refused():
            target = self._at(path)
            try:
                if target.stat().st_size == len(content) and target.read_bytes() == content:
                    return
            except FileNotFoundError:
                pass
            private_files.write(target, content)
            self.written += len(content)

    def get(self, path: str, expected: File | None = None) -> bytes:
        """A file's content. Raises BackupDamaged where it is missing or not what was expected."""
        with self._refused():
            try:
                content = self._at(path).read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise BackupDamaged(f"{path} is missing.") from None
        if expected is not None and hashlib.sha256(content).hexdigest() != expected.sha256:
            raise BackupDamaged(f"{path} was changed.")
        return content

    def files(self) -> Iterator[str]:
        """Every file, by its path, but the lock."""
        with self._refused():
            for path in sorted(self.root.rglob("*")):
                found = path.relative_to(self.root).as_posix()
                if (path.is_symlink() or not path.is_dir()) and found not in _IGNORED:
                    yield found
        if self.keys_root != self.root / KEYS:
            yield from self.key_files()

    # -- Whose it is --------------------------------------------------------------------------------------

    def claim(self, log_id: str) -> None:
        """Begin the directory, or see that it is this log's. Raises Conflict."""
        if (found := self.whose()) is not None:
            if found.log_id != log_id:
                raise Conflict(f"{self.root} has backups of another log ({found.log_id}).")
            return
        with self._refused():
            there = [path.name for path in self.root.iterdir()] if self.root.exists() else []
        if set(there) - _IGNORED:
            raise Conflict(f"{self.root} is not empty and holds no backups; name another directory.")
        self.put(layout.MARKER, msgspec.json.encode(Whose(layout.FORMAT, log_id)))

    def whose(self) -> Whose | None:
        """The log whose backups these are, None where there are none. Raises BackupDamaged."""
        if not (self.root / layout.MARKER).exists():
            return None
        content = self.get(layout.MARKER)
        try:
            found = msgspec.json.decode(content, type=Whose)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise BackupDamaged(f"{layout.MARKER} cannot be read ({error}).") from None
        if found.format != layout.FORMAT:
            raise BackupDamaged(
                f"{layout.MARKER}: the format is {found.format}, this version reads {layout.FORMAT}."
            )
        if msgspec.json.encode(found) != content:
            raise BackupDamaged(f"{layout.MARKER} was changed.")
        return found

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process at a time changes the directory; another waits."""
        with self._refused():
            # By itself, wherever it lies: administrators make backups, and no service reads them.
            private_files.make_directory(self.root, directories.PRIVATE)
            lock = private_files.exclusive(self.root / _LOCK)
            lock.__enter__()
        try:
            yield
        finally:
            lock.__exit__(None, None, None)

    # -- Backups ------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """The backups, oldest first: those whose manifest is there."""
        with self._refused():
            found = (self.root / "backups").glob(f"*/{layout.MANIFEST}")
            return sorted(path.parent.name for path in found if layout.number_of(path.parent.name))

    def chosen(self, name: str | None) -> str:
        """The newest backup, or the one of this name. Raises NotFound."""
        names = self.names()
        if not names:
            raise NotFound(f"There is no backup in {self.root}.")
        if name is None:
            return names[-1]
        if name not in names:
            raise NotFound(f"There is no backup {name} in {self.root}; there are {', '.join(names[-10:])}.")
        return name

    def snapshot(self, name: str, trusted: Collection[str] | None = None) -> Snapshot:
        """A backup's manifest, its signature verified: by one of `trusted` (hex), or by whom it names itself.

        Raises BackupDamaged.
        """
        path = f"{layout.folder_of(name)}/{layout.MANIFEST}"
        content = self.get(path)
        try:
            found = layout.decode_snapshot(content)
        except BackupDamaged as error:
            raise BackupDamaged(f"{path}: {error.detail}.") from None
        signature = self.get(f"{layout.folder_of(name)}/{layout.SIGNATURE}")
        if found.name != name:
            raise BackupDamaged(f"{path} is the manifest of another backup ({found.name}).")
        try:
            raw = bytes.fromhex(signature.decode())
            if raw.hex().encode() != signature:
                raise ValueError("not as it was written")
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(found.signer))
            key.verify(raw, layout.signed(content))
        except (InvalidSignature, ValueError):
            raise BackupDamaged(f"{path} or its signature was changed.") from None
        if trusted is not None and found.signer not in trusted:
            raise BackupDamaged(f"{path} is signed by a key that is none of this log's ({found.signer}).")
        return found

    def inventory(self, inventory: Inventory) -> list[Manifest]:
        """The manifests that an inventory lists. Raises BackupDamaged."""
        path = layout.inventory_path(inventory.file)
        try:
            return layout.decode_inventory(self.get(path, inventory.file))
        except BackupDamaged as error:
            detail = error.detail if error.detail.startswith(path) else f"{path}: {error.detail}."
            raise BackupDamaged(detail) from None

    def keys(self) -> str | None:
        """The path of the keys: the newest, should there be several."""
        found = self.key_files()
        return found[-1] if found else None

    def key_files(self) -> list[str]:
        """Every file with keys, oldest first. Raises Conflict where some lie in both places."""
        own = self.root / KEYS
        with self._refused():
            if self.keys_root != own and any(own.glob("*.sealed")):
                raise Conflict(f"There are keys in {own}, too: move them to {self.keys_root}.")
            return sorted(f"{KEYS}/{path.name}" for path in self.keys_root.glob("*.sealed"))

    # -- Removing -----------------------------------------------------------------------------------------

    def forget(self, names: Sequence[str]) -> None:
        """Remove backups; their manifests first, so that none is ever whole in part."""
        with self._refused():
            for name in names:
                (self.root / layout.folder_of(name) / layout.MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(self.root / layout.folder_of(name))

    def remove(self, paths: Collection[str]) -> None:
        """Remove these files, and the directories that are empty then."""
        with self._refused():
            for path in paths:
                target = self._at(path)
                target.unlink(missing_ok=True)
                for parent in target.parents:
                    if parent in {self.root, self.keys_root} or any(parent.iterdir()):
                        break
                    parent.rmdir()

    def _at(self, path: str) -> Path:
        folder, _, name = path.partition("/")
        return self.keys_root / name if folder == KEYS else self.root / path

    @contextmanager
    def _refused(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = " Free some space; what was begun does not count as a backup."
            where = error.filename or self.root
            raise BackupError(
                f"{where}: {error.strerror or error}.{full if error.errno == errno.ENOSPC else ''}"
            ) from error


def leftover(path: str) -> bool:
    """Whether an interrupted writer may have left a file of this path that no backup lists."""
    parts = path.split("/")
    if _DRAFT.match(parts[-1]):
        return True
    match parts:
        case ["segments", _, _, name] | ["inventories", name]:
            return name.endswith(".zst")
        case ["keys", name]:
            return name.endswith(".sealed")
        case ["backups", name, *_]:
            return layout.number_of(name) > 0
    return False
