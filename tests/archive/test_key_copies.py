"""Copies of client keys outside Redis: there before their events count as archived, and gone with the client."""

from __future__ import annotations

import asyncio

import pytest

from broker.errors import Conflict
from broker.events.archive import storage
from broker.events.archive.storage import ArchiveUnavailable, LocalStorage
from broker.events.client_commands import ClientCommands
from broker.events.control import Registry
from broker.events.key_commands import KeyCommands
from broker.events.key_copies import KeyCopies, KeyKeeper
from broker.events.key_rotation import KeyRotation
from broker.events.keyring import Keyring
from broker.events.positions import Position
from broker.events.sealing import ClientKeys
from broker.settings import Settings
from support import archives, log
from support.waiting import wait_until


class Refusing(LocalStorage):
    """Refuses to write until told otherwise."""

    refusing = True

    def put(self, name: str, content: bytes) -> None:
        if self.refusing:
            raise ArchiveUnavailable("no room")
        super().put(name, content)


@pytest.fixture
async def made(redis, log_name, tmp_path):
    """A log with its registry and keyring, and the commands on them."""
    keys, identity = await log.create(redis, log_name)
    registry = Registry(redis, keys.control, identity.incarnations["control"])
    keyring = Keyring.create(tmp_path / "keyring")
    return keys.control, ClientCommands(registry, keyring), KeyCommands(registry, keyring), keyring


def archiver(redis, control, where, copies: KeyCopies):
    made = archives.archiver(redis, control, where)
    made._keeper = KeyKeeper(redis, control, "inc-control", copies)
    return made


def position(ms: int) -> Position:
    return Position("control", ms, 0)


async def test_every_change_is_copied_and_an_erasure_leaves_nothing(redis, made, tmp_path):
    """Registered, rotated, wrapped anew: the copy is what Redis holds. Erased: no copy, and none comes back."""
    control, clients, keys, keyring = made
    copies = KeyCopies(LocalStorage(tmp_path / "copies"), "log")

    async def copied(client: str) -> bool:
        stored = await redis.hget(control.client_keys, client)
        return (await asyncio.to_thread(copies.load)).get(client) == stored is not None

    await clients.register_client("early", actor="system")
    async with archives.running(archiver(redis, control, tmp_path / "archive", copies)):
        await wait_until(lambda: copied("early"))
        await clients.register_client("acme", actor="system")
        await wait_until(lambda: copied("acme"))
        number = (await keys.add("acme", actor="system")).value
        await keys.activate("acme", number, actor="system")
        await wait_until(lambda: copied("acme"))
        before = copies.load()["acme"]
        assert ClientKeys.unwrap("acme", before, keyring).active.number == 2
        keyring.activate(keyring.add())
        await keys.rewrap("acme", actor="system")
        await wait_until(lambda: copied("acme"))
        assert copies.load()["acme"] != before
        assert len(copies.held().copies["acme"]) == 1
        await clients.erase_client("acme", "asked to", actor="system")
        await wait_until(lambda: "acme" in copies.held().erased)
    assert set(copies.load()) == {"early"}
    copies.put("acme", position(10**15), before)
    assert set(copies.load()) == {"early"}
    assert not any(before in path.read_bytes() for path in tmp_path.rglob("*@*"))


async def test_no_event_counts_before_the_keys_are_copied(redis, made, tmp_path):
    """Where copies cannot be written nothing of control is archived, so that nothing is cut; then all of it is."""
    control, clients, _, _ = made
    where = Refusing(tmp_path / "copies")
    copies = KeyCopies(where, "log")
    archive = archives.stream_archive(tmp_path / "archive", "control")
    await clients.register_client("acme", actor="system")
    running = archiver(redis, control, tmp_path / "archive", copies)
    async with archives.running(running):
        await wait_until(lambda: "no room" in running.status.detail)
        assert archive.last() is None
        where.refusing = False
        await wait_until(lambda: archive.last() is not None)
    assert set(copies.load()) == {"acme"}


async def test_a_newer_versions_event_has_all_keys_copied(redis, made, tmp_path):
    """An event on keys that this version cannot read: whatever keys there are are looked at."""
    control, clients, _, _ = made
    copies = KeyCopies(LocalStorage(tmp_path), "log")
    keeper = KeyKeeper(redis, control, "inc-control", copies)
    await clients.register_client("acme", actor="system")
    (entry,) = await archives.lying(redis, control)
    await keeper.follow([archives.renamed(entry, "ClientRegistered.9")])
    assert set(copies.load()) == {"acme"}


async def test_no_copy_of_an_erased_client_stays_when_all_are_looked_at(redis, made, tmp_path):
    """⚠ Erased beside an event that this version cannot read; or its copy was put back: erased clients have no keys."""
    control, clients, _, _ = made
    copies = KeyCopies(LocalStorage(tmp_path), "log")
    keeper = KeyKeeper(redis, control, "inc-control", copies)
    await clients.register_client("acme", actor="system")
    await keeper.catch_up()
    (path,) = (tmp_path / "log").iterdir()
    wrapped = path.read_bytes()
    await clients.erase_client("acme", "asked to", actor="system")
    registered, erased = await archives.lying(redis, control)
    await keeper.follow([archives.renamed(registered, "KeyRotated.9"), erased])
    assert copies.held() == ({}, {"acme"})
    path.write_bytes(wrapped)
    await keeper.catch_up()
    assert copies.held() == ({}, {"acme"})


async def test_no_master_key_that_copies_need_is_forgotten(redis, made, tmp_path):
    """⚠ Wrapped anew while no archiver ran: without the former master key the copies would open nothing."""
    control, clients, keys, keyring = made
    copies = KeyCopies(LocalStorage(tmp_path), "log")
    keeper = KeyKeeper(redis, control, "inc-control", copies)
    registry = Registry(redis, control, "inc-control")
    rotation = KeyRotation(redis, control, registry, keyring, proof_seconds=0, copies=copies)
    await clients.register_client("acme", actor="system")
    await keeper.catch_up()
    (former,) = keyring.states()
    keyring.activate(keyring.add())
    await keys.rewrap("acme", actor="system")
    with pytest.raises(Conflict, match="acme"):
        await rotation.forget(former, actor="system", patience=0)
    await keeper.catch_up()
    await rotation.forget(former, actor="system")
    ClientKeys.unwrap("acme", copies.load()["acme"], keyring)


def test_the_highest_position_counts(tmp_path):
    """An older Redis cannot replace newer keys; a torn copy gives way to the one before it."""
    copies = KeyCopies(LocalStorage(tmp_path), "log")
    copies.put("a", position(20), b"newer")
    copies.put("a", position(10), b"older")
    assert copies.load() == {"a": b"newer"}
    (path,) = (tmp_path / "log").iterdir()
    (tmp_path / "log" / "a@30-0.0123456789abcdef").write_bytes(b"torn")
    assert copies.load() == {"a": b"newer"}
    assert path.stat().st_mode & 0o777 == 0o600


def test_where_copies_lie(tmp_path):
    """In the data directory; in the archive's place where that is another, unseen by it; or where told to."""
    assert storage.beside(Settings(data_dir=tmp_path)).root == tmp_path / "client-keys"
    assert storage.beside(Settings(archive_url=f"{tmp_path}/a/")).root == tmp_path / "a" / ".client-keys"
    assert storage.beside(Settings(archive_url="memory://b/c")).shown == "memory://b/c/.client-keys"
    assert (
        storage.beside(Settings(archive_url="memory://b/c", client_keys_url=str(tmp_path))).root == tmp_path
    )
