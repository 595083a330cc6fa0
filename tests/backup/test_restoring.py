"""A backup brought back elsewhere: every table, every open message; nothing twice, nothing that was taken back."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import msgspec
import pytest

from broker import clock, preparation
from broker.cli import reviving
from broker.domain.certificates import CertificateEntry
from broker.domain.message import Refused
from broker.domain.retry import RetryPolicy
from broker.errors import Conflict, SettingsError
from broker.events import connection, key_copies, log_identity
from broker.events.archive import storage
from broker.events.archive.segments import GENESIS
from broker.events.archive.storage import LocalStorage
from broker.events.archive.store import StreamArchive
from broker.events.backup import restoring
from broker.events.backup.creating import Source
from broker.events.backup.layout import BackupError
from broker.events.backup.repository import Repository
from broker.events.backup.sealing import WrongPassphrase
from broker.events.digests_key import DigestKey
from broker.events.positions import Position
from broker.events.repair.run import Repair
from broker.events.user_commands import UserCommands
from broker.projections import schema
from broker.projections.rebuild.run import Rebuild
from broker.projections.store import Store
from broker.settings import Settings
from support import archives, backups, databases, histories
from support.readmodels import rows
from support.repairs import World
from support.rig import QUICK, Recorder
from support.waiting import wait_until

SLOW = msgspec.structs.replace(QUICK, retry=RetryPolicy(interval=3600.0))


@pytest.fixture(scope="module")
def urls(mariadb) -> tuple[str, str]:
    """A database with a schema, and one that is empty at the beginning of each test."""
    one, other = databases.create(mariadb), databases.create(mariadb)
    schema.migrate(one)
    return one, other


@pytest.fixture
async def world(valkey, redis, log_name, urls, tmp_path):
    """The log that is backed up."""
    await asyncio.to_thread(databases.clear, urls[0])
    store = Store(urls[0])
    made = await World(valkey.url, redis, tmp_path / "one", log_name, store).create()
    made.store_url = urls[0]
    made.settings = msgspec.structs.replace(made.settings, certs_dir=tmp_path / "one" / "certs")
    original = made.redis
    yield made
    await made.aclose()
    if made.redis is not original:
        await made.redis.aclose()
    made.redis = original
    await made.empty()
    await store.close()


@pytest.fixture
async def other(valkey, urls, log_name, tmp_path):
    """The settings of an installation elsewhere: another Redis, another database, nothing in its directory."""
    url = f"{valkey.url}?db=1"
    await asyncio.to_thread(databases.clear, urls[1])
    yield Settings(
        data_dir=tmp_path / "two",
        certs_dir=tmp_path / "two" / "certs",
        redis_url=url,
        mysql_url=urls[1],
        log_name=log_name,
        partitions=2,
    )
    client = connection.connect(url)
    await client.flushdb()
    await client.aclose()


def source(world: World) -> Source:
    """What is backed up."""
    key = DigestKey.open(world.settings, world.keyring)
    return Source(world.settings, world.redis, world.keys, world.identity, world.storage, key)


async def restored(settings: Settings, target: Path, name: str | None = None) -> reviving.Restored:
    """Restore."""
    return await reviving.restored(settings, Repository(target), name, backups.PASSPHRASE)


async def move(world: World, settings: Settings) -> None:
    """From here on the world is the one that was restored."""
    world.settings, world.url = settings, settings.redis_url
    world.redis, world.storage = connection.connect(settings.redis_url), storage.opened(settings)
    await world.renew()


async def phase(world: World, message_id: bytes) -> str | None:
    """Of an open message."""
    return getattr(await world.state(message_id), "phase", None)


async def used(world: World) -> tuple[list[bytes], list[bytes]]:
    """Messages delivered, and some that wait; archived in part."""
    done = await world.submit(4)
    first = Recorder()
    async with world.working(channels=[first], limits=SLOW):
        await world.all_finished(done)
        await world.archive()
        first.answer = Refused("not now", 503)
        waiting = await world.submit(2)
        for one in waiting:
            await wait_until(lambda one=one: _is_due(world, one))
    return done, waiting


async def _is_due(world: World, message_id: bytes) -> bool:
    return await phase(world, message_id) == "due"


async def test_everything_comes_back(world, other, target) -> None:
    """⚠ Every row of every table, every open message, keys, registry; what was delivered is not delivered again."""
    _, waiting = await used(world)
    fresh = await world.submit(4)
    made = await backups.create(source(world), target)
    assert made.snapshot.open == 6
    await world.project()
    before, tables = await world.derived(), await asyncio.to_thread(rows, world.store_url)

    done = await restored(other, target)
    assert (done.events, done.open, done.differences, done.keys_lost) == (made.snapshot.events, 6, [], [])
    assert await asyncio.to_thread(rows, other.mysql_url) == tables
    assert not (other.data_dir / restoring.FOLDER).exists()
    assert (other.data_dir / "keys" / "keyring").stat().st_mode & 0o777 == 0o600
    await move(world, other)
    assert await world.derived() == before
    second = Recorder()
    async with world.working(channels=[second]):
        await world.all_finished(fresh)
        for one in waiting:
            found = await world.state(one)
            assert (found.phase, found.attempts) == ("due", 1)
            await world.redis.zadd(world.keys.partitions[one[15]].due, {one: 1})
        ended = await world.all_finished(waiting)
    assert {one.attempts for one in ended} == {2}
    # Each once, and readable: the bodies were opened with the keys of the backup.
    assert sorted(second.seen) == sorted([*fresh, *waiting])
    assert {one.plain.message_body for one in second.deliveries} == {"hello"}
    # What goes on from there is archived after it, and backed up into the same place.
    await world.archive()
    assert archives.same(
        await archives.entries(StreamArchive(world.storage, world.identity.log_id, "0")),
        await backups.whole(source(world), "0"),
    )
    assert (await backups.create(source(world), target)).snapshot.open == 0
    assert backups.verify(target).ok


def certificate(name: str) -> CertificateEntry:
    """A producer's certificate, good for a day."""
    now = clock.now_ms()
    return CertificateEntry(
        fingerprint=name.encode().hex().ljust(64, "0"),
        serial=name.encode().hex(),
        client_id=name,
        role="producer",
        not_before_ms=now - 1000,
        not_after_ms=now + 86_400_000,
        issued_at_ms=now,
    )


async def test_what_was_taken_back_since(world, other, target) -> None:
    """⚠ A client erased, a certificate revoked, a user disabled after the backup stay so when an older one is restored."""
    users = UserCommands(world.registry)
    for address in ("first@example.com", "second@example.com"):
        await users.create_user(address, "a long password", "admin", [], actor="system")
    await world.clients.register_client("gone", actor="system")
    await wait_until(lambda: world.trust.client("gone"))
    await world.submit(2, client="gone")
    await world.certificates.record_certificate(certificate("gone"), actor="system")
    await world.certificates.record_certificate(certificate("demo"), actor="system")
    first = await backups.create(source(world), target)
    await world.clients.erase_client("gone", "asked to", actor="system")
    user = await world.registry.read("email:second@example.com", str)
    await users.disable_user(user, actor="system")
    await world.certificates.revoke_certificate(client_id="demo", reason="keyCompromise", actor="system")
    await backups.create(source(world), target)

    done = await restored(other, target, first.snapshot.name)
    assert (done.erased, done.disabled, done.keys_lost) == (["gone"], ["second@example.com"], [])
    assert (done.revoked, done.differences) == ([certificate("demo").fingerprint], [])
    await move(world, other)
    for name in ("demo", "gone"):
        assert world.trust.certificate(certificate(name).fingerprint).status == "revoked"
    assert world.trust.certificate(certificate("demo").fingerprint).reason == "keyCompromise"
    assert b"gone" not in await world.redis.hgetall(world.keys.control.client_keys)
    assert world.trust.client("gone").status == "erased"
    assert (await world.registry.read(f"user:{user}", dict | list))[-1] is True
    held = key_copies.opened(other, world.identity.log_id).held()
    assert "gone" in held.erased
    assert "gone" not in held.copies
    seen = Recorder()
    async with world.working(channels=[seen]):
        more = await world.submit(1)
        await world.all_finished(more)
    assert seen.seen == more


async def test_marks_of_erasures_that_survived(world, other, target, tmp_path) -> None:
    """⚠ Erased after the only backup: where the copies of keys survived, their mark keeps the client erased."""
    await world.clients.register_client("gone", actor="system")
    await wait_until(lambda: world.trust.client("gone"))
    await world.submit(1, client="gone")
    await backups.create(source(world), target)
    await world.clients.erase_client("gone", "asked to", actor="system")
    await world.archive()
    copies = tmp_path / "client-keys"
    shutil.copytree(world.settings.data_dir / "client-keys", copies)
    done = await restored(msgspec.structs.replace(other, client_keys_url=str(copies)), target)
    assert (done.erased, done.keys_lost, done.differences) == (["gone"], [], [])
    await move(world, other)
    assert world.trust.client("gone").status == "erased"
    assert b"gone" not in await world.redis.hgetall(world.keys.control.client_keys)


async def test_an_archive_that_survived(world, other, target, tmp_path) -> None:
    """⚠ Where the archive has more than the backup, all of it comes back; one with another history is not touched."""
    done, _ = await used(world)
    await backups.create(source(world), target)
    more = await world.submit(3)
    await world.archive()
    await world.project()
    before, tables = await world.derived(), await asyncio.to_thread(rows, world.store_url)
    elsewhere = tmp_path / "archive"
    shutil.copytree(world.settings.data_dir / "archive", elsewhere)
    alien = await asyncio.to_thread(another_history, elsewhere, tmp_path / "alien", world)
    with pytest.raises(BackupError, match="another history"):
        await restored(msgspec.structs.replace(other, archive_url=alien), target)
    shutil.rmtree(other.data_dir)

    settings = msgspec.structs.replace(other, archive_url=str(elsewhere))
    found = await restored(settings, target)
    assert found.open == 5
    assert await asyncio.to_thread(rows, other.mysql_url) == tables
    await move(world, settings)
    assert await world.derived() == before
    seen = Recorder()
    async with world.working(channels=[seen], limits=SLOW):
        await world.all_finished(more)
    assert sorted(seen.seen) == sorted(more)
    assert not set(seen.seen) & set(done)


def another_history(archive: Path, where: Path, world: World) -> str:
    """An archive whose first segment is of the same log and says other things; where it is."""
    shutil.copytree(archive, where)
    of = StreamArchive(LocalStorage(where), world.identity.log_id, "0")
    first = of.find(1)
    for path in (where / world.identity.log_id / "0").rglob("*.*"):
        path.unlink()
    facts = histories.happy(1)
    entries = [fact.stored(Position("0", 1000 + n, 0)) for n, fact in enumerate(facts)]
    before = msgspec.structs.replace(first, number=0, events=0, sha256=GENESIS)
    manifest, content = restoring._following(before, entries, first.incarnation)
    of.put_segment(manifest, content)
    of.put_manifest(manifest)
    return str(where)


class Killed(BaseException):
    """The process ends here."""


async def killed(*_: object) -> None:
    """In place of a step that is not reached."""
    raise Killed


async def test_interrupted(world, other, target, monkeypatch) -> None:
    """⚠ Killed before the log is made, between two tables, while files take their places: run again, it goes on."""
    await used(world)
    await backups.create(source(world), target)
    await world.project()
    before, tables = await world.derived(), await asyncio.to_thread(rows, world.store_url)
    for place in (Repair, Rebuild):
        with monkeypatch.context() as patch:
            patch.setattr(place, "run", killed)
            with pytest.raises(Killed):
                await restored(other, target)
        # Nothing that could be taken for an installation, and no new log may be begun there.
        assert log_identity.read_file(other) is None
        with pytest.raises(preparation.SetupError, match="interrupted"):
            preparation.check_restored(other)
    real, moves = restoring._move, 0

    def some(*args: Path) -> None:
        nonlocal moves
        moves += 1
        if moves > 3:
            raise Killed
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(restoring, "_move", some)
        with pytest.raises(Killed):
            await restored(other, target)
    with pytest.raises(preparation.SetupError, match="interrupted"):
        preparation.check_restored(other)
    done = await restored(other, target)
    assert (done.open, done.differences) == (2, [])
    preparation.check_restored(other)
    assert await asyncio.to_thread(rows, other.mysql_url) == tables
    await move(world, other)
    assert await world.derived() == before
    assert sorted(path.name for path in other.data_dir.iterdir()) == [
        "archive", "certs", "client-keys", "keys", "run",
    ]  # fmt: skip


async def test_refused(world, other, target, tmp_path, monkeypatch) -> None:
    """⚠ Nothing is written where something is: directory, Redis, database; nor with other settings or passphrases."""
    made = await backups.create(source(world), target)
    with pytest.raises(WrongPassphrase):
        await reviving.restored(other, Repository(target), None, "another")
    for change in ({"log_name": "another"}, {"partitions": 4}):
        with pytest.raises(SettingsError, match=f"BROKER_{next(iter(change)).upper()}="):
            await restored(msgspec.structs.replace(other, **change), target)
    assert not (other.data_dir / "keys").exists()
    full = tmp_path / "full"
    full.mkdir()
    (full / "letter.txt").write_text("Dear")
    with pytest.raises(Conflict, match=r"not empty \(letter\.txt\)"):
        await restored(msgspec.structs.replace(other, data_dir=full), target)
    with pytest.raises(Conflict, match="not empty"):
        await restored(msgspec.structs.replace(other, certs_dir=full), target)
    with pytest.raises(Conflict, match="holds a log"):
        await restored(msgspec.structs.replace(other, redis_url=world.url), target)
    await world.project()
    with pytest.raises(Conflict, match=r"database at .* is not empty"):
        await restored(msgspec.structs.replace(other, mysql_url=world.store_url), target)
    assert not (other.data_dir / restoring.FOLDER).exists()
    assert [path.name for path in full.iterdir()] == ["letter.txt"]
    # Once one was begun, another backup must not be mixed with it.
    with monkeypatch.context() as patch:
        patch.setattr(Repair, "run", killed)
        with pytest.raises(Killed):
            await restored(other, target)
    second = await backups.create(source(world), target)
    with pytest.raises(Conflict, match="Another backup was being restored"):
        await restored(other, target)
    victim = next(
        path for path in Repository(target).files() if "/tail/" in path and made.snapshot.name in path
    )
    (target / victim).unlink()
    with pytest.raises(Conflict, match="is damaged"):
        await restored(other, target, made.snapshot.name)
    shutil.rmtree(other.data_dir)
    assert (await restored(other, target)).name == second.snapshot.name
