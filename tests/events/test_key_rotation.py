"""Rotating keys: added, loaded by all, used; what older keys sealed stays readable."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from broker.errors import Conflict, NotFound
from broker.events import codec, key_holders, key_rotation, types
from broker.events.client_commands import ClientCommands
from broker.events.control import Registry
from broker.events.key_commands import KeyCommands
from broker.events.key_holders import KeyHolder
from broker.events.key_rotation import KeyRotation, NotLoaded
from broker.events.keyring import Keyring
from broker.events.sealing import ClientKeys, Sealer
from support import log
from support.waiting import wait_until

NUMBER = "+4915200000000"


class Slot:
    """A control slot with a keyring and two clients."""

    def __init__(self, redis, directory, log_name: str) -> None:
        self.redis, self.path, self.log_name = redis, directory / "keys" / "keyring", log_name

    async def create(self) -> Slot:
        self.keys, self.identity = await log.create(self.redis, self.log_name)
        self.incarnation = self.identity.incarnations["control"]
        self.keyring = Keyring.create(self.path)
        self.registry = Registry(self.redis, self.keys.control, self.incarnation)
        for name in ("acme", "demo"):
            await ClientCommands(self.registry, self.keyring).register_client(name, actor="system")
        return self

    def rotation(self, proof_seconds: float = 0.0) -> KeyRotation:
        return KeyRotation(
            self.redis, self.keys.control, self.registry, self.keyring, proof_seconds=proof_seconds
        )

    async def client_keys(self, name: str = "demo", keyring: Keyring | None = None) -> ClientKeys:
        return ClientKeys.unwrap(name, await self.registry.client_keys(name), keyring or self.keyring)

    async def rotations(self) -> list[types.KeyRotated]:
        """Every KeyRotated of the control stream, oldest first."""
        return [
            codec.decode(tag, fields[b"d"])
            for tag, fields in await log.history(self.redis, self.keys.control)
            if tag == "KeyRotated"
        ]

    @contextlib.asynccontextmanager
    async def process(self, name: str, keyring: Keyring):
        """Another process, which says what it has loaded."""
        holder = KeyHolder(self.redis, self.keys.control, self.incarnation, keyring)
        holder.name = name
        stop = asyncio.Event()
        task = asyncio.create_task(holder.run(stop))
        await wait_until(lambda: self._known(name))
        try:
            yield
        finally:
            stop.set()
            await task

    async def _known(self, name: str) -> bool:
        return name in await key_holders.holders(self.redis, self.keys.control)


@pytest.fixture
async def slot(redis, tmp_path, log_name: str) -> Slot:
    return await Slot(redis, tmp_path, log_name).create()


async def test_a_client_s_key(slot):
    """Added before it is used, with the proof's time between; old messages open, numbers are found by both keys."""
    before = await slot.client_keys()
    old = Sealer(slot.keyring, lambda _: before)
    sealed, hashed = old.seal("demo", bytes(16), NUMBER, "body"), old.number_hash("demo", NUMBER)
    rotating = asyncio.create_task(slot.rotation(0.3).clients(["demo", "acme"], actor="user:ada"))

    async def added() -> ClientKeys | None:
        keys = await slot.client_keys("acme")
        return keys if len(keys.versions) == 2 else None

    waiting = await wait_until(added)
    assert waiting.active.number == 1
    assert (await slot.client_keys()).active.number == 1
    done = await rotating
    assert {name: one.value for name, one in done.items()} == {"demo": 2, "acme": 2}
    after = await slot.client_keys()
    new = Sealer(slot.keyring, lambda _: after)
    assert after.active.number == 2
    assert new.unseal("demo", bytes(16), sealed).message_body == "body"
    assert new.number_hash("demo", NUMBER) != hashed
    assert new.number_hashes("demo", NUMBER) == [new.number_hash("demo", NUMBER), hashed]
    assert [(one.client_id, one.key_id, one.state) for one in await slot.rotations()] == [
        ("demo", "2", "added"), ("acme", "2", "added"), ("demo", "2", "active"), ("acme", "2", "active"),
    ]  # fmt: skip


async def test_a_rotation_that_broke_off_goes_on(slot):
    """A key that was added and never used is the one that the next rotation uses; nobody goes back to an older one."""
    commands = KeyCommands(slot.registry, slot.keyring)
    assert (await commands.add("demo", actor="system")).value == 2
    assert (await commands.add("demo", actor="system")).value == 2
    await slot.rotation().clients(["demo"], actor="system")
    assert sorted((await slot.client_keys()).versions) == [1, 2]
    assert (await commands.activate("demo", 1, actor="system")).value == 2
    assert (await commands.activate("demo", 2, actor="system")).positions == ()
    with pytest.raises(NotFound):
        await slot.rotation().clients(["nobody"], actor="system")


async def test_the_master_key(slot):
    """Every client's keys are wrapped anew; the old key retires, and goes once nothing needs it."""
    (first,) = slot.keyring.states()
    done = await slot.rotation().master(patience=0, actor="system")
    assert slot.keyring.states() == {first: "retired", done.key_id: "active"}
    assert (done.retired, done.rewrapped) == ([first], 2)
    assert set().union(*(await slot.rotation().wrapped_by()).values()) == {done.key_id}
    states = [(one.client_id, one.state) for one in await slot.rotations()]
    assert states == [(None, "added"), (None, "active"), ("acme", "wrapped"), ("demo", "wrapped")]
    with pytest.raises(Conflict, match="not a retired"):
        await slot.rotation().forget(done.key_id, actor="system")
    await slot.rotation().forget(first, actor="system")
    assert list(Keyring.load(slot.path).states()) == [done.key_id]
    assert (await slot.client_keys()).active.number == 1
    assert (await slot.rotations())[-1].state == "removed"


async def test_a_master_key_that_is_needed_stays(slot):
    """What wraps a client's keys is not removed."""
    (first,) = slot.keyring.states()
    slot.keyring.activate(slot.keyring.add())
    with pytest.raises(Conflict, match="wraps the keys of 2 clients"):
        await slot.rotation().forget(first, actor="system")
    assert first in slot.keyring.states()


async def test_every_process_first(slot, monkeypatch):
    """A new master key waits until all have loaded it; the one that has not is named, and asking again goes on."""
    monkeypatch.setattr(key_holders, "LOOK_SECONDS", 0.01)
    # Another machine, with its own copy of the file.
    other = slot.path.parent / "copy"
    other.write_bytes(slot.path.read_bytes())
    other.chmod(0o600)
    ours, theirs = Keyring.load(slot.path), Keyring.load(other)
    async with slot.process("here:1", ours), slot.process("there:2", theirs):
        (first,) = slot.keyring.states()
        rotating = slot.rotation()
        waiting = asyncio.create_task(rotating.master(patience=60, actor="system"))
        added = await wait_until(lambda: len(slot.keyring.states()) == 2 and list(slot.keyring.states())[1])
        ours.reload_if_changed()
        await wait_until(lambda: _has(slot, "here:1", added))
        assert not waiting.done()
        waiting.cancel()
        with pytest.raises(NotLoaded, match="there:2") as error:
            await slot.rotation().master(patience=0.1, actor="system")
        assert "here:1" not in str(error.value)
        assert slot.keyring.states() == {first: "active", added: "added"}
        other.write_bytes(slot.path.read_bytes())
        theirs.reload_if_changed()
        done = await slot.rotation().master(patience=30, actor="system")
        assert done.key_id == added
    # Who goes away in order holds nobody up.
    assert await key_holders.holders(slot.redis, slot.keys.control) == {}


async def _has(slot, name: str, key_id: str) -> bool:
    return key_id in (await key_holders.holders(slot.redis, slot.keys.control))[name]


async def test_who_was_killed_holds_nobody_up_for_long(slot):
    """What a process said counts for a while only, and is tidied away by the others."""
    await KeyHolder(slot.redis, slot.keys.control, slot.incarnation, slot.keyring)._told(1, "m-1")

    async def gone() -> bool:
        return not await key_holders.holders(slot.redis, slot.keys.control)

    await wait_until(gone)
    assert await slot.redis.hlen(slot.keys.control.key_holders) == 1
    other = KeyHolder(slot.redis, slot.keys.control, slot.incarnation, slot.keyring)
    other.name = "other"
    assert await other._told(1000, "m-1")
    assert await slot.redis.hkeys(slot.keys.control.key_holders) == [b"other"]


async def test_events_hold_no_key(slot):
    """Neither the stream nor what is shown of a rotation has anything of a key in it."""
    await slot.rotation().master(patience=0, actor="system")
    await slot.rotation().clients(["demo"], actor="system")
    keys = await slot.client_keys()
    secret = [
        *(version.data_key for version in keys.versions.values()),
        *(version.number_key for version in keys.versions.values()),
        *(key.key for key in slot.keyring._contents.keys),
        slot.keyring.index_key,
    ]
    stream = b"".join(
        b"".join(fields.values()) for _, fields in await log.history(slot.redis, slot.keys.control)
    )
    shown = repr((keys, slot.keyring, await slot.rotations(), slot.rotation())).encode()
    for key in secret:
        for form in (key, key.hex().encode()):
            assert form not in stream
            assert form not in shown


def test_polling_is_finer_than_what_is_waited_for():
    """A rotation looks more often than processes say what they have."""
    assert key_rotation.POLL_SECONDS < key_holders.LOOK_SECONDS < key_holders.SAY_SECONDS
    assert key_holders.SAY_SECONDS * 1000 < key_holders.COUNTS_MS


async def test_processes_say_their_role(slot):
    """How many of each role are there is known from what they say; one of an older version says none."""
    made = [
        KeyHolder(slot.redis, slot.keys.control, slot.incarnation, slot.keyring, role=role)
        for role in ("gateway", "gateway", "server", "")
    ]
    for each in made:
        assert await each._told(60_000, "m-1")
    said = await key_holders.holders(slot.redis, slot.keys.control)
    assert set(said) == {each.name for each in made}
    assert key_holders.roles(said) == {"gateway": 2, "server": 1}
