"""A log with archive, tables, copies of keys and workers, whose Redis can be emptied or put back to an older state."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from broker import clock
from broker.domain.certificates import CertificateEntry
from broker.events import connection, key_copies, log_identity
from broker.events.appender import Appender
from broker.events.archive import storage
from broker.events.archive.archiver import Archiver, Limits
from broker.events.archive.store import StreamArchive
from broker.events.archive.trimming import Trimmer
from broker.events.certificate_commands import CertificateCommands
from broker.events.client_commands import ClientCommands
from broker.events.control import Registry, split
from broker.events.feed import Feed
from broker.events.key_copies import KeyKeeper
from broker.events.keys import ARCHIVE_GROUP
from broker.events.positions import at, start
from broker.events.reopening import Reopening
from broker.events.repair.run import Repair, Report
from broker.projections import catalog
from broker.projections.repairing import StoredTables
from broker.projections.store import Store
from broker.settings import Settings
from support import archives, readmodels
from support.log import OUTCOMES_KEPT_MS
from support.rig import Rig
from support.waiting import wait_until

Snapshot = dict[bytes, tuple[int, bytes]]


class World(Rig):
    """A rig whose log knows its identity as `up` would have made it."""

    def __init__(self, url: str, redis: Any, directory: Path, log_name: str, store: Store) -> None:
        super().__init__(url, redis, directory, log_name)
        self.store = store
        self.settings = Settings(data_dir=directory, log_name=log_name, partitions=self.partitions)
        self.storage = storage.opened(self.settings)

    async def create(self) -> World:
        await super().create()
        whole = msgspec.json.encode(self.identity)
        await self.redis.hset(self.keys.control.meta, mapping={"identity": whole, "complete": "1"})
        log_identity.remember(self.settings, self.identity)
        return self

    @property
    def certificates(self) -> CertificateCommands:
        return CertificateCommands(self.registry)

    # -- Archive and tables -------------------------------------------------------------------------------

    def archiver(self, stream: Any) -> Archiver:
        incarnation = self.identity.incarnations[stream.stream]
        feed = Feed(
            self.redis, stream, incarnation, "a", 5.0, group=ARCHIVE_GROUP, lease=stream.archive_lease
        )
        archive = StreamArchive(self.storage, self.identity.log_id, stream.stream)
        keeper = None
        if stream is self.keys.control:
            copies = key_copies.opened(self.settings, self.identity.log_id)
            keeper = KeyKeeper(self.redis, self.keys.control, incarnation, copies)
        return Archiver(feed, archive, Limits(size=1, seconds=0.0, poll=0.01), keeper=keeper)

    async def copy_keys(self) -> None:
        """What an archiver does within a second of every change."""
        control = self.archiver(self.keys.control)
        await control._keeper.catch_up()

    async def last(self, stream: Any) -> str:
        if not await self.redis.exists(stream.events):
            return "0-0"
        return (await self.redis.xinfo_stream(stream.events))["last-generated-id"].decode()

    async def archive(self, *, trim: bool = False) -> None:
        """Archive all there is now; `trim`: cut from Redis what nobody needs there any more."""
        ends = [await self.last(stream) for stream in self.keys.streams]
        archivers = [self.archiver(stream) for stream in self.keys.streams]
        async with archives.running(*archivers):
            for one, end in zip(archivers, ends, strict=True):
                await wait_until(lambda o=one, e=end: e == "0-0" or ((s := o.status.sealed) and s.last >= e))
            if trim:
                await self._trim(archivers)

    async def _trim(self, archivers: Sequence[Archiver]) -> None:
        readers = await StoredTables(self.store).readers()
        trimmer = Trimmer(archivers, dict, lambda: 0)
        for one in archivers:
            if not one.owning:
                continue
            stream = one.feed.stream
            known = readers.get(stream, {})
            wanted = [each.name for each in catalog.projections() if each.wants(stream)]
            needs = {name: known[name].position if name in known else start(stream) for name in wanted}
            await trimmer.trim(one, needs)

    async def project(self) -> None:
        """Apply all there is now to the tables."""
        runners = [
            readmodels.runner(self.redis, stream, self.identity, self.store) for stream in self.keys.streams
        ]
        async with readmodels.running(*runners):
            for stream in self.keys.streams:
                end = await self.last(stream)
                if end != "0-0":
                    position = at(stream.stream, end)
                    await wait_until(lambda p=position: readmodels.reached(self.store, p))

    # -- Losing data --------------------------------------------------------------------------------------

    async def names(self) -> list[bytes]:
        return [name async for name in self.redis.scan_iter(match=f"b1:{{{self.log_name}:*", count=5000)]

    async def snapshot(self) -> Snapshot:
        """Everything in Redis, as an old copy of its file holds it."""
        return {
            name: (max(0, await self.redis.pttl(name)), await self.redis.dump(name))
            for name in await self.names()
        }

    async def empty(self) -> None:
        if names := await self.names():
            await self.redis.unlink(*names)

    async def roll_back(self, to: Snapshot) -> None:
        await self.empty()
        for name, (ttl, content) in to.items():
            await self.redis.restore(name, ttl, content)

    # -- Repairing ----------------------------------------------------------------------------------------

    def repair(self, *, tables: bool = True, redis: Any = None, **options: Any) -> Repair:
        return Repair(
            redis or self.redis,
            self.settings,
            self.storage,
            lambda log_id: key_copies.opened(self.settings, log_id),
            StoredTables(self.store) if tables else None,
            **options,
        )

    async def repaired(self, **options: Any) -> Report:
        """Repair, and go on in the log's next life as restarted roles do."""
        report = await self.repair(**options).run()
        await self.renew()
        return report

    async def renew(self) -> None:
        self.stop.set()
        await self.following
        self.identity = await log_identity.load(self.redis, self.settings)
        self.stop = asyncio.Event()
        await self.trust_redis.aclose()
        self.trust_redis = connection.connect(self.url)
        self.trust = self.follow(self.trust_redis)
        self.following = asyncio.create_task(self.trust.run(self.stop))
        self.sealer._lookup = self.trust.keys
        self.appender = Appender(self.redis, self.keys, self.identity)
        self.reopening = Reopening(self.redis, self.keys, self.identity, outcomes_kept_ms=OUTCOMES_KEPT_MS)
        self.registry = Registry(self.redis, self.keys.control, self.identity.incarnations["control"])
        self.clients = ClientCommands(self.registry, self.keyring)
        await wait_until(self.trust.fresh)

    # -- What there is ------------------------------------------------------------------------------------

    async def unreadable(self) -> list[bytes]:
        """Open messages whose ciphertext is not at hand."""
        found = []
        for keys in self.keys.partitions:
            for message_id, record in (await self.redis.hgetall(keys.open)).items():
                entry = record.split(b"|", 1)[0]
                aside = await self.redis.hexists(keys.bodies, message_id)
                if not aside and not await self.redis.xrange(keys.events, entry, entry):
                    found.append(message_id)
        return found

    async def derived(self) -> dict[str, Any]:
        """What follows from the events, so that it can be compared: without what a repair cannot know."""
        found: dict[str, Any] = {}
        for keys in self.keys.partitions:
            name = keys.stream
            records = await self.redis.hgetall(keys.open)
            found[f"{name} open"] = {key: _open(record) for key, record in records.items()}
            due = await self.redis.zrange(keys.due, 0, -1, withscores=True)
            found[f"{name} due"] = sorted(member for member, _ in due)
            for key in await self.names():
                short = key.decode().removeprefix(keys.base)
                if short.startswith(":done:"):
                    found[f"{name}{short}"] = await self.redis.hgetall(key)
                if short.startswith(":idem:"):
                    found[f"{name}{short}"] = await self.redis.get(key)
        registry = await self.redis.hgetall(self.keys.control.registry)
        found["registry"] = {key: _entry(key, split(value)[1]) for key, value in registry.items()}
        found["keys"] = await self.redis.hgetall(self.keys.control.client_keys)
        return {name: value for name, value in found.items() if value}


def certificate(name: str, number: int = 1) -> CertificateEntry:
    """A producer's certificate, good for a day; another for each number."""
    now = clock.now_ms()
    return CertificateEntry(
        fingerprint=f"{name.encode().hex()}{number:x}".rjust(64, "0"),
        serial=f"{name.encode().hex()}{number:x}",
        client_id=name,
        role="producer",
        not_before_ms=now - 1000,
        not_after_ms=now + 86_400_000,
        issued_at_ms=now,
    )


def _open(record: bytes) -> Any:
    position, cycle, attempt, phase, _due, _crashes, cause, client, correlation = record.split(b"|", 8)
    return position, cycle, attempt, phase, cause, client, correlation


def _entry(field: bytes, payload: bytes | None) -> Any:
    decoded = msgspec.msgpack.decode(payload or b"\xc0")
    if field.startswith(b"cert:"):
        # The event's time stands in for the decision's.
        decoded = {name: value for name, value in decoded.items() if name != "issued_at_ms"}
        if decoded["status"] == "revoked":
            decoded["revoked_at_ms"] = None
    return decoded
