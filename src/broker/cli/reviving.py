"""What `backup restore` does: everything made in one folder of the data directory, then put in its place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from broker.cli.backup_common import progress, verified
from broker.errors import Conflict, NotFound
from broker.settings import Settings

if TYPE_CHECKING:
    from broker.events.backup.bundle import Bundle
    from broker.events.backup.layout import Snapshot
    from broker.events.backup.repository import Repository
    from broker.events.backup.restoring import Place
    from broker.events.connection import Redis
    from broker.events.positions import Position
    from broker.events.repair.report import Report
    from broker.preparation import Tools
    from broker.projections.store import Store

ERASED = "it was erased after the backup was made"


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """What came back. `erased`, `revoked`, `disabled`: since the backup was made, and done again."""

    name: str
    data_dir: str
    events: int
    open: int
    tables: list[str]
    erased: list[str]
    revoked: list[str]
    disabled: list[str]
    keys_lost: list[str]
    """Clients without keys, although nobody erased them: their messages cannot be read."""
    differences: list[str]
    """Between what the backup says of itself and what was found after the restore."""


async def restored(
    settings: Settings,
    repository: Repository,
    name: str | None,
    passphrase: str,
    say: Callable[[str], None] = lambda _: None,
) -> Restored:
    """Make an installation where `settings` say, of the backup `name` (None: the newest).

    Raises Conflict (something is there already, the backup is damaged), NotFound, WrongPassphrase,
    SettingsError, BackupError, KeyringError, EmbeddedError, and what a repair and a rebuild raise.
    """
    from broker.embedded.state import RunLock
    from broker.events.backup import restoring

    place = restoring.Place(settings)
    name = repository.chosen(name)
    say(f"Verifying {name}")
    report = await asyncio.to_thread(verified, repository, name, passphrase, None)
    if wrong := [*report.problems, *(each for one in report.backups for each in one.problems)]:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise Conflict(f"{name} is damaged: {wrong[0]}{more} `broker backup verify` tells all of it.")
    keys = _opened(repository, passphrase)
    snapshot = repository.snapshot(name, keys.signers)
    restoring.check_settings(snapshot, settings)
    # Before anything is written, were it only a lock.
    place.look(snapshot)
    with RunLock(settings.data_dir):
        place.begin(snapshot)
        if (said := place.made) is not None:
            done = msgspec.json.decode(said, type=Restored)
        else:
            try:
                done = await Making(place, repository, snapshot, keys, say).run()
            except BaseException:
                if not place.checked:
                    place.abandon()
                raise
            place.finish(msgspec.json.encode(done))
        say("Putting everything in its place")
        place.settle()
    return done


def _opened(repository: Repository, passphrase: str) -> Bundle:
    from broker.events.backup import bundle

    path, whose = repository.keys(), repository.whose()
    if path is None or whose is None:
        raise NotFound(f"There are no keys in {repository.keys_root}.")
    return bundle.unseal(repository.get(path), passphrase, whose.log_id)


@asynccontextmanager
async def servers(settings: Settings, say: Callable[[str], None]) -> AsyncIterator[Settings]:
    """The embedded servers of a directory, for which no addresses are set; the settings with addresses."""
    from broker.embedded import leftovers
    from broker.embedded.install import ensure_mariadb
    from broker.embedded.urls import mariadb, resolve, valkey

    await leftovers.reap(settings)
    async with AsyncExitStack() as stack:
        if settings.mysql_url is None:
            say("Starting MariaDB")
            await asyncio.to_thread(ensure_mariadb, say)
            database = mariadb(settings)
            await database.start()
            stack.push_async_callback(database.stop)
        if settings.redis_url is None:
            say("Starting Valkey")
            server = valkey(settings)
            await server.start()
            stack.push_async_callback(server.stop)
        yield resolve(settings)


class Making:
    """Makes an installation of one backup, in the staged directory of `place` and on the servers."""

    def __init__(
        self,
        place: Place,
        repository: Repository,
        snapshot: Snapshot,
        keys: Bundle,
        say: Callable[[str], None],
    ) -> None:
        self._place = place
        self._repository = repository
        self._snapshot = snapshot
        self._keys = keys
        self._say = say

    async def run(self) -> Restored:
        """Everything; what an interrupted restore made is gone on with."""
        from broker.bootstrap import check_redis
        from broker.events import connection
        from broker.projections import schema
        from broker.projections.store import Store

        async with servers(self._place.staged, self._say) as settings:
            await check_redis(settings)
            await asyncio.to_thread(schema.migrate, settings.mysql_url or "")
            store = Store(settings.mysql_url or "", pool=self._snapshot.partitions + 6)
            redis = connection.connect(settings.redis_url or "", timeout=settings.redis_timeout)
            try:
                if not self._place.checked:
                    await _check_empty(redis, settings, store)
                    self._place.check()
                await self._lay(settings)
                return await self._build(settings, redis, store)
            finally:
                await redis.aclose()
                await store.close()

    async def _lay(self, settings: Settings) -> None:
        """Keys, certificates and the archive, from which all the rest is made."""
        from broker.events import key_copies
        from broker.events.archive import storage
        from broker.events.backup.restoring import Laying
        from broker.events.keyring import Keyring

        self._say("Copying archive, keys and certificates")
        laying = Laying(self._repository, self._snapshot, self._keys, settings)
        await asyncio.to_thread(laying.files)
        # Without the passphrase that seals it, nothing would run in the end.
        Keyring.load(settings.keyring_path, settings.key_passphrase)
        await asyncio.to_thread(laying.client_keys, key_copies.opened(settings, self._snapshot.log_id))
        with progress("events") as (advance, total):
            total(self._snapshot.events)
            await asyncio.to_thread(laying.archive, storage.opened(settings), advance)

    async def _build(self, settings: Settings, redis: Redis, store: Store) -> Restored:
        """The log, and the tables after it."""
        from broker.bootstrap import opened
        from broker.events import key_copies
        from broker.events.archive import storage
        from broker.events.repair.run import Repair
        from broker.projections.repairing import StoredTables

        self._say("Making the log anew")
        copies = partial(key_copies.opened, settings)
        repair = Repair(redis, settings, storage.opened(settings), copies, StoredTables(store))
        report = await repair.run()
        async with opened(settings) as tools:
            marked = (await asyncio.to_thread(copies(self._snapshot.log_id).held)).erased
            again = await _reapplied(tools, self._keys, marked, self._snapshot)
            tables = await _tables(tools, store, self._say)
        return Restored(
            name=self._snapshot.name,
            data_dir=str(self._place.settings.data_dir),
            events=sum(one.events for one in report.streams),
            open=sum(one.open or 0 for one in report.streams),
            tables=tables,
            keys_lost=sorted(set(report.keys_lost) - set(again["erased"])),
            differences=[*_differences(self._snapshot, report), *again.pop("left")],
            **again,
        )


async def _check_empty(redis: Redis, settings: Settings, store: Store) -> None:
    """Raises Conflict where Redis or the database holds something already."""
    from broker.events.backup import restoring
    from broker.events.keys import LogKeys
    from broker.projections import checkpoints
    from broker.settings import safe_url

    keys = LogKeys(settings.log_name, settings.partitions)
    if await restoring.holds_log(redis, keys):
        raise Conflict(
            f"Redis at {safe_url(settings.redis_url or '')} holds a log {settings.log_name!r} already."
        )
    if await checkpoints.everything(store):
        raise Conflict(f"The database at {safe_url(settings.mysql_url or '')} is not empty.")


async def _reapplied(
    tools: Tools, keys: Bundle, marked: set[str], snapshot: Snapshot
) -> dict[str, list[str]]:
    """What was taken back after the backup was made is taken back again: clients, certificates, users.

    `marked`: clients that the copies of the keys know to be erased, which the repair has erased already.
    """
    from broker.cli.opening import ACTOR
    from broker.events import directory, positions
    from broker.events.erasure import Erasure
    from broker.events.positions import CONTROL

    erasure = Erasure(tools.clients, tools.registry, tools.redis, tools.keys, tools.reopening)
    for client in await directory.clients(tools.redis, tools.keys.control):
        if client.client_id in {*keys.erased, *marked}:
            # No file of this Redis ever held the keys; what is parked ends.
            await erasure.erase(client.client_id, ERASED, actor=ACTOR, within=0)
    erased = await _erased_since(tools, positions.at(CONTROL, snapshot.streams[CONTROL].position))
    certificates = await directory.certificates(tools.redis, tools.keys.control)
    revoked = [
        one.fingerprint for one in certificates if one.status != "revoked" and one.fingerprint in keys.revoked
    ]
    for fingerprint in revoked:
        await tools.certificates.revoke_certificate(
            fingerprint=fingerprint, reason=keys.revoked[fingerprint], actor=ACTOR
        )
    disabled, left = [], []
    for user in await directory.users(tools.redis, tools.keys.control):
        if not user.disabled and user.user_id in keys.disabled:
            try:
                await tools.users.disable_user(user.user_id, actor=ACTOR)
                disabled.append(user.email)
            except Conflict:
                left.append(f"{user.email} was disabled since, and is the backup's last admin")
    return {"erased": erased, "revoked": revoked, "disabled": disabled, "left": left}


async def _erased_since(tools: Tools, position: Position) -> list[str]:
    """The clients whose erasure is on record after a position of the control stream."""
    from broker.events import codec, types
    from broker.events.archive import storage
    from broker.events.exported_source import History

    history = History(tools.redis, tools.keys, tools.identity, storage.opened(tools.settings))
    found = []
    async for block in history.blocks(position.stream, position):
        events = [codec.decode(entry.tag, entry.data) for entry in block]
        found += [event.client_id for event in events if isinstance(event, types.ClientErased)]
    return found


async def _tables(tools: Tools, store: Store, say: Callable[[str], None]) -> list[str]:
    """Build every read model from the history; their names."""
    from broker.events.archive import storage
    from broker.projections import catalog
    from broker.projections.rebuild.run import Rebuild
    from broker.projections.rebuild.sources import LogSource

    source = LogSource(tools.redis, tools.keys, tools.identity, storage.opened(tools.settings))
    for projection in catalog.projections():
        say(f"Building {', '.join(projection.tables)}")
        await Rebuild(store, source, projection).run()
    return [table for projection in catalog.projections() for table in projection.tables]


def _differences(snapshot: Snapshot, report: Report) -> list[str]:
    """What the backup says of itself, against what was made of it; an archive that went further has more."""
    from broker.events import positions

    found = []
    for one in report.streams:
        part = snapshot.streams[one.stream]
        end = positions.at(one.stream, part.position)
        if one.events < part.events or positions.at(one.stream, one.last) < end:
            found.append(
                f"{one.stream}: {one.events} events up to {one.last}; the backup has {part.events} up to "
                f"{part.position}"
            )
        elif one.events == part.events and part.open != one.open:
            found.append(f"{one.stream}: {one.open} open messages; the backup has {part.open}")
    return found
