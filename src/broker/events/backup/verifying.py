"""Whether backups are whole: every file against the manifest that lists it, each manifest by its signature.

A file is read once, however many backups share it. What no backup lists is named, too, although a restore
would not read it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import chain
from typing import Final

import msgspec

from broker.events import positions
from broker.events.archive import segments
from broker.events.archive.segments import Manifest
from broker.events.backup import bundle, layout
from broker.events.backup.bundle import Bundle
from broker.events.backup.layout import BackupDamaged, File, Snapshot, StreamPart
from broker.events.backup.repository import Repository, leftover
from broker.events.backup.streams import manifests_of

MAX_PROBLEMS: Final = 100


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """One backup. `problems` name files; empty: it is whole. `signer` is whose word that is."""

    name: str
    problems: list[str]
    began_at: str | None = None
    events: int = 0
    open: int = 0
    bytes: int = 0
    positions: dict[str, str] = {}
    signer: str | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What was found in a directory. `proved`: the signers are known to be the log's own."""

    backups: list[Checked]
    problems: list[str]
    """Of the directory itself, not of one backup."""
    unlisted: list[str]
    """Files that belong to no backup."""
    interrupted: list[str]
    """The same, of a kind that an interrupted backup leaves; the next one removes them."""
    proved: bool
    opened: bool
    """Whether the keys were opened by a passphrase."""
    keys_listed: bool
    """Whether a backup here tells what the keys have to be; else the passphrase alone does."""

    @property
    def ok(self) -> bool:
        """Whether there is a backup, and nothing is wrong with any."""
        whole = all(not backup.problems for backup in self.backups)
        return bool(self.backups) and whole and not self.problems and not self.unlisted


class Verification:
    """Verifies a directory. `trusted`: public keys (hex) of the log's digests; None where none is at hand."""

    def __init__(
        self,
        repository: Repository,
        trusted: Collection[str] | None = None,
        passphrase: str | None = None,
        on_bytes: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._repository = repository
        self._trusted = None if trusted is None else set(trusted)
        self._passphrase = passphrase
        self._on_bytes = on_bytes
        self._seen: dict[str, str | None] = {}
        """What was found wrong with each file that was read."""
        self._listed = {layout.MARKER}
        self._current = repository.keys()

    def run(self, names: Collection[str] | None = None) -> Report:
        """Look at these backups (None: all of them, and at what lies beside them). Blocks.

        Raises WrongPassphrase, BackupError, and BackupDamaged where there are no backups.
        """
        whose = self._repository.whose()
        if whose is None:
            raise BackupDamaged(f"{self._repository.root} holds no backups ({layout.MARKER} is missing).")
        problems, opened = self._keys(whose.log_id)
        backups = [self._backup(name, whose.log_id) for name in names or self._repository.names()]
        unlisted = [] if names else [path for path in self._repository.files() if path not in self._listed]
        return Report(
            backups=backups,
            problems=problems,
            unlisted=[path for path in unlisted if not leftover(path)],
            interrupted=[path for path in unlisted if leftover(path)],
            proved=self._trusted is not None,
            opened=opened,
            keys_listed=bool(names) or self._current in self._listed,
        )

    def _keys(self, log_id: str) -> tuple[list[str], bool]:
        """What is wrong with the keys, and whether they were opened; they tell whom to trust."""
        path = self._current
        if path is None:
            return ["keys/ holds no keys: nothing could be read after a restore."], False
        if self._passphrase is None:
            return [], False
        try:
            found: Bundle = bundle.unseal(self._repository.get(path), self._passphrase, log_id)
        except BackupDamaged as error:
            return [f"{path}: {error.detail}"], False
        # Only who knows the passphrase can have put them there.
        self._trusted = (self._trusted or set()) | set(found.signers)
        if bundle.KEYRING not in found.files:
            return [f"{path} holds no keyring."], True
        return [], True

    def _backup(self, name: str, log_id: str) -> Checked:
        folder = layout.folder_of(name)
        self._listed |= {f"{folder}/{layout.MANIFEST}", f"{folder}/{layout.SIGNATURE}"}
        try:
            snapshot = self._repository.snapshot(name, self._trusted)
        except BackupDamaged as error:
            return Checked(name=name, problems=[error.detail])
        problems: list[str] = []
        if snapshot.log_id != log_id:
            problems.append(f"{layout.MARKER} names the log {log_id}, the manifest {snapshot.log_id}.")
        for path, file in snapshot.files.items():
            self._check(f"{folder}/files/{path}", file, problems)
        if snapshot.keys == self._current:
            # All are opened by the newest keys; those that they replaced are gone.
            self._check(snapshot.keys, snapshot.keys_file, problems)
        size = sum(file.size for file in snapshot.files.values())
        for stream, part in snapshot.streams.items():
            size += self._stream(snapshot, stream, part, problems)
        return Checked(
            name=name,
            problems=problems[:MAX_PROBLEMS],
            began_at=snapshot.began_at,
            events=snapshot.events,
            open=snapshot.open,
            bytes=size,
            positions={stream: part.position for stream, part in snapshot.streams.items()},
            signer=snapshot.signer,
        )

    def _stream(self, snapshot: Snapshot, stream: str, part: StreamPart, problems: list[str]) -> int:
        """Every segment of one stream, and that they follow on one another; their size in bytes."""
        before: Manifest | None = None
        size = 0
        for inventory in part.inventories:
            if not self._check(layout.inventory_path(inventory.file), inventory.file, problems):
                return size
        shared = ((layout.segment_path(each), each) for each in manifests_of(self._repository, part))
        own_only = ((layout.tail_path(snapshot.name, each), each) for each in part.tail)
        for path, manifest in chain(shared, own_only):
            own = manifest.log_id == snapshot.log_id and manifest.stream == stream
            why = segments.succeeds(manifest, before) if own else "it is of another stream"
            if why:
                problems.append(f"Stream {stream}, segment {manifest.number}: {why}.")
                return size
            self._check(path, File(manifest.sha256, manifest.bytes), problems)
            size += manifest.bytes
            before = manifest
        end = positions.start(stream) if before is None else before.end
        if (end.entry_id, before.events if before else 0) != (part.position, part.events):
            problems.append(f"Stream {stream} ends at {end}, its manifest says {part.position}.")
        return size

    def _check(self, path: str, expected: File, problems: list[str]) -> bool:
        """Whether a file is what it should be; it is read once."""
        self._listed.add(path)
        key = f"{path} {expected.sha256}"
        if key not in self._seen:
            try:
                self._repository.get(path, expected)
                self._seen[key] = None
            except BackupDamaged as error:
                self._seen[key] = error.detail
            self._on_bytes(expected.size)
        if (wrong := self._seen[key]) is not None:
            problems.append(wrong)
        return wrong is None


def listed(repository: Repository) -> set[str]:
    """Every file that a backup of the directory lists. Raises BackupDamaged where that cannot be told."""
    found = {layout.MARKER}
    names, seen = repository.names(), set()
    for name in names:
        snapshot = repository.snapshot(name)
        folder = layout.folder_of(name)
        found |= {f"{folder}/{layout.MANIFEST}", f"{folder}/{layout.SIGNATURE}"}
        found |= {f"{folder}/files/{path}" for path in snapshot.files}
        if name == names[-1]:
            found.add(snapshot.keys)
        for part in snapshot.streams.values():
            for inventory in part.inventories:
                if inventory.file not in seen:
                    seen.add(inventory.file)
                    found.add(layout.inventory_path(inventory.file))
                    found |= {layout.segment_path(manifest) for manifest in repository.inventory(inventory)}
            found |= {layout.tail_path(name, manifest) for manifest in part.tail}
    return found
