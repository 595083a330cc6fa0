"""Making a backup of a log while it works: nothing waits for it.

Where each stream ends is noted first, the partitions before `control`, so that the client of every message is
in the backup, too. All up to there is copied; then the keys as they are now; the manifest last of all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from broker import __version__, clock
from broker.errors import Conflict
from broker.events import types
from broker.events.access import AccessLog
from broker.events.archive.storage import Storage
from broker.events.archive.store import StreamArchive
from broker.events.backup import bundle, layout, record, streams
from broker.events.backup.bundle import Bundle
from broker.events.backup.layout import BackupDamaged, BackupError, File, Snapshot, StreamPart
from broker.events.backup.record import Remembered
from broker.events.backup.repository import Repository, leftover
from broker.events.backup.streams import End, StreamBackup
from broker.events.backup.verifying import listed
from broker.events.connection import Redis
from broker.events.digests_key import DigestKey
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.events.positions import CONTROL
from broker.settings import Settings, shown

SETTINGS_FILE: Final = "settings.json"
EXPORT_FORMAT: Final = "backup"


class Source(msgspec.Struct, frozen=True):
    """What a backup is made of; the settings say where files lie."""

    settings: Settings
    redis: Redis
    keys: LogKeys
    identity: LogIdentity
    storage: Storage
    signer: DigestKey


class Made(msgspec.Struct, frozen=True):
    """A backup that was made, and how many bytes were written for it."""

    snapshot: Snapshot
    written: int
    removed: list[str]
    """Older backups."""
    tidied: bool
    """False where another backup here is damaged: then it cannot be told what belongs to none."""


class Creation:
    """One backup into a directory. `on_events` is told of events as they are taken."""

    def __init__(
        self,
        source: Source,
        repository: Repository,
        passphrase: str,
        *,
        actor: str,
        on_events: Callable[[int], None] = lambda _: None,
        on_total: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._source = source
        self._repository = repository
        self._passphrase = passphrase
        self._actor = actor
        self._streams = {stream.stream: stream for stream in source.keys.streams}
        self._on_events = on_events
        self._on_total = on_total

    async def run(self, *, full: bool = False, new_passphrase: bool = False, keep: int | None = None) -> Made:
        """Make it. `full`: read the whole archive, and write anew what is damaged here. `keep`: so many stay.

        Raises Conflict, WrongPassphrase (another than that of the backups here, unless `new_passphrase`),
        BackupError, LogUnavailable, LogRefused, ArchiveDamaged, ArchiveUnavailable, HistoryGap.
        """
        lock = self._repository.locked()
        await asyncio.to_thread(lock.__enter__)
        try:
            return await self._run(full=full, new_passphrase=new_passphrase, keep=keep)
        finally:
            lock.__exit__(None, None, None)

    async def _run(self, *, full: bool, new_passphrase: bool, keep: int | None) -> Made:
        repository, log_id = self._repository, self._source.identity.log_id
        repository.claim(log_id)
        self._check_keys()
        held = None if new_passphrase else await asyncio.to_thread(self._keys_there)
        before = None if full else self._before()
        began = clock.iso(clock.now_ms())
        names = repository.names()
        name = layout.name_of(layout.number_of(names[-1]) + 1 if names else 1, began)
        await self._record(name)
        ends = {stream: await self._end(stream) for stream in self._streams}
        self._on_total(sum(end.added for end in ends.values()))
        parts = {}
        for stream, end in ends.items():
            parts[stream] = await self._take(name, stream, end, before)
        keys = await self._keys(parts[CONTROL].position, held)
        snapshot = await self._finish(name, began, parts, keys)
        removed = names[: max(0, len(names) + 1 - keep)] if keep else []
        tidied = await asyncio.to_thread(self._tidy, snapshot, removed)
        await asyncio.to_thread(self._remember, snapshot)
        return Made(snapshot, repository.written, removed, tidied)

    def _check_keys(self) -> None:
        """Raises Conflict where the keys of another log lie: they would be taken for older ones of ours."""
        for path in self._repository.key_files():
            if bundle.of_another(self._repository.get(path), self._source.identity.log_id):
                raise Conflict(f"{self._repository.keys_root} holds the keys of another log; name another.")

    def _keys_there(self) -> Bundle | None:
        """The keys of the backups that are there. Raises WrongPassphrase."""
        path = self._repository.keys()
        if path is None:
            return None
        return bundle.unseal(self._repository.get(path), self._passphrase, self._source.identity.log_id)

    def _before(self) -> Snapshot | None:
        """The newest backup, if it is one of ours: what it has need not be copied."""
        trusted = bundle.public_keys(self._source.settings.certs_dir) | {self._source.signer.public.hex()}
        for name in reversed(self._repository.names()):
            try:
                return self._repository.snapshot(name, trusted)
            except BackupDamaged:
                continue
        return None

    async def _record(self, name: str) -> None:
        """Put on record that the history leaves the house, before it does."""
        source = self._source
        access = source.keys.access
        log = AccessLog(source.redis, access, source.identity.incarnations[access.stream])
        event = types.HistoryExported(EXPORT_FORMAT, {"name": name}, 0)
        await log.append((f"export:{name}", event), actor=self._actor)

    async def _end(self, stream: str) -> End:
        source = self._source
        return await streams.end(source.redis, self._streams[stream], source.identity.incarnations[stream])

    async def _take(self, name: str, stream: str, end: End, before: Snapshot | None) -> StreamPart:
        source = self._source
        backup = StreamBackup(
            self._repository,
            StreamArchive(source.storage, source.identity.log_id, stream),
            name,
            source.identity.incarnations[stream],
            size=source.settings.archive_segment_mb * 1024 * 1024,
            on_events=self._on_events,
        )
        part = before.streams.get(stream) if before is not None else None
        return await backup.take(source.redis, self._streams[stream], end, part)

    async def _keys(self, control: str, held: Bundle | None) -> Bundle:
        """The keys as they are now, which is no earlier than the events up to `control`.

        Raises BackupError where they lack some that the backups there have (`held`).
        """
        source = self._source
        try:
            keys = await bundle.gathered(
                source.redis,
                source.keys.control,
                source.settings,
                log_id=source.identity.log_id,
                made_at=clock.iso(clock.now_ms()),
                control=control,
            )
        except OSError as error:
            raise BackupError(f"{error.filename}: {error.strerror}.") from None
        if held is not None and (missing := sorted((bundle.NEEDED & set(held.files)) - set(keys.files))):
            raise BackupError(
                f"{', '.join(missing)}: in the backups at {self._repository.root}, but not here; all of them "
                "would lose it. Make backups where all keys are, or into another directory."
            )
        return keys

    async def _finish(self, name: str, began: str, parts: dict[str, StreamPart], keys: Bundle) -> Snapshot:
        """Files, keys, signature, and the manifest that makes it a backup."""
        source, put = self._source, self._repository.put
        files = {path: content for path, content in keys.files.items() if bundle.is_public(path, content)}
        settings = msgspec.json.encode(shown(source.settings), enc_hook=str)
        files[SETTINGS_FILE] = msgspec.json.format(settings, indent=1)
        for path, content in files.items():
            await asyncio.to_thread(put, f"{layout.folder_of(name)}/files/{path}", content)
        sealed = await asyncio.to_thread(bundle.seal, keys, self._passphrase)
        await asyncio.to_thread(put, layout.keys_path(name), sealed)
        snapshot = Snapshot(
            name=name,
            version=__version__,
            log_id=source.identity.log_id,
            log_name=source.settings.log_name,
            partitions=source.identity.partitions,
            incarnations=source.identity.incarnations,
            began_at=began,
            finished_at=clock.iso(clock.now_ms()),
            streams=parts,
            files={path: File.of(content) for path, content in files.items()},
            keys=layout.keys_path(name),
            keys_file=File.of(sealed),
            signer=source.signer.public.hex(),
        )
        manifest = layout.encode_snapshot(snapshot)
        signature = source.signer.sign(layout.signed(manifest)).hex().encode()
        await self._unchanged()
        await asyncio.to_thread(put, f"{layout.folder_of(name)}/{layout.SIGNATURE}", signature)
        await asyncio.to_thread(put, f"{layout.folder_of(name)}/{layout.MANIFEST}", manifest)
        return snapshot

    async def _unchanged(self) -> None:
        """Raises LogRefused where Redis was emptied or repaired meanwhile: what was read is no history."""
        for stream in self._streams:
            await self._end(stream)

    def _remember(self, snapshot: Snapshot) -> None:
        """Let the installation know that it was backed up. Raises BackupError."""
        target, began = str(self._repository.root.absolute()), clock.parse_iso(snapshot.began_at)
        try:
            record.remember(self._source.settings, made=Remembered(snapshot.name, target, began))
        except OSError as error:
            raise BackupError(
                f"{snapshot.name} is made and whole, but {error.filename} cannot be written "
                f"({error.strerror}): to the metrics none was made."
            ) from None

    def _tidy(self, snapshot: Snapshot, removed: list[str]) -> bool:
        """Remove replaced keys, older backups, what interrupted ones left; False: not the last of these."""
        self._repository.remove([path for path in self._repository.key_files() if path != snapshot.keys])
        self._repository.forget(removed)
        try:
            known = listed(self._repository)
        except BackupDamaged:
            # What that one lists cannot be told, so nothing may go.
            return False
        self._repository.remove(
            [path for path in self._repository.files() if path not in known and leftover(path)]
        )
        return True
