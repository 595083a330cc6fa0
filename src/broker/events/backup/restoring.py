"""Putting a backup's files where a log is made of them again: archive, keys, certificates, identity.

All of it is made in one folder of the data directory first and takes its places in the end, so that a restore
which breaks off leaves nothing that could be taken for an installation. Run again, it goes on.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from broker import clock
from broker.errors import Conflict, SettingsError
from broker.events import log_identity, positions, private_files
from broker.events.archive import segments
from broker.events.archive.segments import Entry, Manifest, Segment
from broker.events.archive.storage import Storage
from broker.events.archive.store import StreamArchive
from broker.events.backup import bundle, layout
from broker.events.backup.bundle import Bundle
from broker.events.backup.layout import BackupError, File, Snapshot
from broker.events.backup.repository import Repository
from broker.events.backup.streams import manifests_of
from broker.events.connection import Redis, call
from broker.events.key_copies import KeyCopies
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.events.positions import CONTROL
from broker.settings import Settings, variable

FOLDER: Final = ".restoring"
_BEGUN: Final = "backup.json"
_CHECKED: Final = "checked"
_MADE: Final = "made.json"
_IDENTITY: Final = "run/log-identity.json"
_REMAINS: Final = ".restored"
_HARMLESS: Final = frozenset({FOLDER, _REMAINS, "log", "lost+found"})
_OF_UP: Final = frozenset({"up.lock", "up.pid"})
_PUBLIC_MODE: Final = 0o644


class Begun(msgspec.Struct, frozen=True):
    """Which backup a folder is made of."""

    log_id: str
    name: str


class Place:
    """Where a restore goes: the places that `settings` name, by way of one folder."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = settings.data_dir / FOLDER

    @property
    def staged(self) -> Settings:
        """The settings of the installation while it is made. Archive and servers of one's own stay theirs."""
        return msgspec.structs.replace(
            self.settings, data_dir=self.folder, certs_dir=self.folder / "certs", keyring=None, ca_key=None
        )

    def begin(self, snapshot: Snapshot) -> None:
        """Make the folder, or find the one that was begun. Raises Conflict where anything is in the way."""
        path = self.folder / _BEGUN
        if not self.look(snapshot):
            private_files.write(path, msgspec.json.encode(Begun(snapshot.log_id, snapshot.name)))

    def look(self, snapshot: Snapshot) -> bool:
        """Whether it was begun; writes nothing. Raises Conflict where anything is in the way."""
        path = self.folder / _BEGUN
        if not path.exists():
            self._check_empty()
            return False
        if msgspec.json.decode(path.read_bytes(), type=Begun) != Begun(snapshot.log_id, snapshot.name):
            raise Conflict(
                f"Another backup was being restored into {self.settings.data_dir}; remove {self.folder}."
            )
        return True

    def abandon(self) -> None:
        """Remove the folder: nothing was made anywhere else."""
        shutil.rmtree(self.folder)

    def _check_empty(self) -> None:
        settings = self.settings
        for directory in (settings.data_dir, settings.certs_dir):
            for path in sorted(directory.iterdir()) if directory.exists() else ():
                own = (
                    path.name == "run" and path.is_dir() and {each.name for each in path.iterdir()} <= _OF_UP
                )
                if path.name not in _HARMLESS and not own:
                    raise Conflict(
                        f"{directory} is not empty ({path.name}); restore into an empty directory."
                    )
        for path in (settings.keyring_path, settings.ca_key_path):
            if path.exists():
                raise Conflict(f"{path} exists; restore where there are no keys.")

    @property
    def checked(self) -> bool:
        """Whether the servers were found empty; from then on what is there is this restore's."""
        return (self.folder / _CHECKED).exists()

    def check(self) -> None:
        """They were."""
        private_files.write(self.folder / _CHECKED, b"")

    @property
    def made(self) -> bytes | None:
        """What was said when everything had been made, which only has to take its place now."""
        path = self.folder / _MADE
        return path.read_bytes() if path.exists() else None

    def finish(self, said: bytes) -> None:
        """Everything was made."""
        private_files.write(self.folder / _MADE, said)

    def settle(self) -> None:
        """Everything takes its place, the log's identity first: without it a new log could be begun."""
        for source, target in self._moves():
            if source.exists():
                _move(source, target)
        # By another name at once: half removed, it must not look like one that was begun.
        remains = self.settings.data_dir / _REMAINS
        shutil.rmtree(remains, ignore_errors=True)
        self.folder.rename(remains)
        shutil.rmtree(remains)

    def _moves(self) -> Iterator[tuple[Path, Path]]:
        settings, folder = self.settings, self.folder
        yield folder / _IDENTITY, settings.data_dir / _IDENTITY
        yield folder / bundle.KEYRING, settings.keyring_path
        yield folder / bundle.CA_KEY, settings.ca_key_path
        homes = {"certs": settings.certs_dir, "keys": settings.data_dir / "keys"}
        for name, home in homes.items():
            if (folder / name).exists():
                yield from ((path, home / path.name) for path in sorted((folder / name).iterdir()))
        for path in sorted(folder.iterdir()):
            if path.name not in {*homes, "run", _BEGUN, _CHECKED, _MADE}:
                yield path, settings.data_dir / path.name


def interrupted(settings: Settings) -> bool:
    """Whether a restore into this data directory was begun and not finished."""
    return (settings.data_dir / FOLDER).exists()


async def holds_log(redis: Redis, keys: LogKeys) -> bool:
    """Whether Redis has anything of a log of this name. Raises LogUnavailable."""
    pipeline = redis.pipeline(transaction=False)
    for stream in keys.streams:
        pipeline.exists(stream.meta)
        pipeline.exists(stream.events)
    pipeline.exists(keys.control.registry)
    pipeline.exists(keys.control.client_keys)
    return any(await call(pipeline.execute()))


def check_settings(snapshot: Snapshot, settings: Settings) -> None:
    """Raises SettingsError where the settings are of another log than the backup."""
    for name in ("log_name", "partitions"):
        value = getattr(snapshot, name)
        if getattr(settings, name) != value:
            raise SettingsError(
                f"The backup is of a log with {name} = {value}: set {variable(name)}={value}."
            )


class Laying:
    """Puts the files of one backup in place. `staged`: the settings that say where. Everything blocks."""

    def __init__(self, repository: Repository, snapshot: Snapshot, keys: Bundle, staged: Settings) -> None:
        self._repository = repository
        self._snapshot = snapshot
        self._keys = keys
        self._staged = staged

    def files(self) -> None:
        """Keys, certificates, the log's identity. Raises BackupError."""
        snapshot, root = self._snapshot, self._staged.data_dir
        for path, content in self._keys.files.items():
            _put(root / path, content, _PUBLIC_MODE if bundle.is_public(path, content) else None)
        identity = LogIdentity(snapshot.log_id, snapshot.partitions, snapshot.incarnations)
        if not (root / _IDENTITY).exists():
            log_identity.remember(self._staged, identity)

    def client_keys(self, copies: KeyCopies) -> None:
        """The clients' keys, from where the repair takes them; none of a client that was erased since."""
        held = copies.held()
        position = positions.at(CONTROL, self._keys.control)
        for client in self._keys.erased:
            copies.erase(client, held)
        for client, wrapped in self._keys.client_keys.items():
            copies.put(client, position, wrapped, held)

    def archive(self, storage: Storage, on_events: Callable[[int], None] = lambda _: None) -> None:
        """The archive up to the backup's end. One that is there already, and goes further, is left as it is.

        Raises BackupError where the archive there has another history.
        """
        for stream, part in self._snapshot.streams.items():
            archive = StreamArchive(storage, self._snapshot.log_id, stream)
            there, common = archive.last(), None
            for manifest in manifests_of(self._repository, part):
                if there is None or manifest.number > there.number:
                    self._check_same(archive, common)
                    common = None
                    self._seal(archive, manifest, layout.segment_path(manifest))
                else:
                    common = manifest
                on_events(manifest.count)
            self._check_same(archive, common)
            for manifest in part.tail:
                self._tail(archive, manifest)
                on_events(manifest.count)

    def _seal(self, archive: StreamArchive, manifest: Manifest, path: str) -> None:
        content = self._repository.get(path, File(manifest.sha256, manifest.bytes))
        archive.put_segment(manifest, content)
        archive.put_manifest(manifest)

    def _check_same(self, archive: StreamArchive, manifest: Manifest | None) -> None:
        """Each segment names the one before, so that one that both have tells of all before it."""
        if manifest is None:
            return
        found = archive.find(manifest.number)
        if found is None or found.sha256 != manifest.sha256:
            raise BackupError(
                f"{archive.shown} holds another history than the backup; name another archive_url."
            )

    def _tail(self, archive: StreamArchive, manifest: Manifest) -> None:
        """Seal what of a tail's segment the archive does not have."""
        there = archive.last()
        path = layout.tail_path(self._snapshot.name, manifest)
        if there is not None and there.end >= manifest.end:
            return
        if segments.succeeds(manifest, there) is None:
            self._seal(archive, manifest, path)
            return
        if there is None:
            raise BackupError(f"{path} follows on segments that are not there.")
        content = self._repository.get(path, File(manifest.sha256, manifest.bytes))
        blocks = segments.unpack(manifest, content)
        rest = [entry for block in blocks for entry in block if entry.position > there.end]
        following, packed = _following(there, rest, manifest.incarnation)
        archive.put_segment(following, packed)
        archive.put_manifest(following)


def _following(before: Manifest, entries: Sequence[Entry], incarnation: str) -> tuple[Manifest, bytes]:
    """These entries as the segment after `before`."""
    segment = Segment(before.stream)
    segment.add(entries)
    content, digest = segment.pack()
    first, last = entries[0].position, entries[-1].position
    return msgspec.structs.replace(
        before,
        incarnation=incarnation,
        number=before.number + 1,
        epoch=before.epoch + 1,
        first=first.entry_id,
        last=last.entry_id,
        count=segment.count,
        events=before.events + segment.count,
        plain_bytes=segment.size,
        bytes=len(content),
        sha256=digest,
        previous=before.sha256,
        sealed_at=clock.iso(clock.now_ms()),
    ), content


def _move(source: Path, target: Path) -> None:
    private_files.make_directory(target.parent)
    if not target.exists():
        try:
            source.rename(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            draft = target.with_name(f".{target.name}.restoring")
            _remove(draft)
            if source.is_dir():
                shutil.copytree(source, draft)
            else:
                shutil.copy2(source, draft)
            draft.rename(target)
    # What was there had been moved before, and its removal had been interrupted.
    _remove(source)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _put(path: Path, content: bytes, mode: int | None = None) -> None:
    try:
        private_files.write(path, content)
        if mode is not None:
            path.chmod(mode)
    except OSError as error:
        raise BackupError(f"{path}: {error.strerror}.") from None
