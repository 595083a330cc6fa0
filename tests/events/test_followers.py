"""Processes say up to which control event they go by the registry."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from broker.events import feed, key_holders, positions
from broker.events.client_commands import ClientCommands
from broker.events.control import Registry
from broker.events.key_holders import KeyHolder
from broker.events.keyring import Keyring
from broker.events.positions import Position
from broker.events.trust import Trust
from support import log
from support.waiting import wait_until


class Slot:
    """A control slot, and processes that follow it."""

    def __init__(self, redis, keys, incarnation: str, keyring: Keyring) -> None:
        self.redis, self.keys, self.incarnation, self.keyring = redis, keys, incarnation, keyring
        self.clients = ClientCommands(Registry(redis, keys, incarnation), keyring)

    def trust(self, **options) -> Trust:
        return Trust(self.redis, self.keys, self.incarnation, self.keyring, **options)

    def holder(self, trust: Trust | None, role: str = "gateway") -> KeyHolder:
        return KeyHolder(self.redis, self.keys, self.incarnation, self.keyring, role=role, trust=trust)

    @asynccontextmanager
    async def following(self, trust: Trust):
        holder, stop = self.holder(trust), asyncio.Event()
        await holder.announce()
        tasks = [asyncio.create_task(each.run(stop)) for each in (trust, holder)]
        try:
            yield holder.name
        finally:
            stop.set()
            await asyncio.gather(*tasks)

    async def applied(self) -> dict[str, Position | None]:
        return await key_holders.applied(self.redis, self.keys)

    async def reached(self, name: str, event: Position) -> bool:
        return (await self.applied())[name] >= event


@pytest.fixture
async def slot(redis, log_name: str, tmp_path) -> Slot:
    keys, identity = await log.create(redis, log_name)
    return Slot(redis, keys.control, identity.incarnations["control"], Keyring.create(tmp_path / "keyring"))


async def test_what_was_applied_is_said(slot: Slot) -> None:
    """Each change is said once it is known; who ends says no more."""
    trust = slot.trust(poll=0.01)
    async with slot.following(trust) as name:
        for client in ("acme", "bank"):
            (event,) = (await slot.clients.register_client(client, actor="system")).positions
            await wait_until(lambda event=event: slot.reached(name, event))
            assert trust.client(client) is not None
        (newest,) = (await slot.applied()).values()
        assert newest == (await feed.ahead(slot.redis, slot.keys, positions.start("control"))).last
    assert await slot.applied() == {}
    assert await slot.redis.exists(slot.keys.followers) == 0


async def test_a_change_is_said_at_once(slot: Slot) -> None:
    """What the follower has just read wakes who says it, whenever that would look around by itself."""
    trust = slot.trust()
    waiting = asyncio.create_task(slot.holder(trust)._rung(3600.0, asyncio.Event()))
    await trust.poll()
    async with asyncio.timeout(60):
        assert await waiting is False


async def test_who_has_applied_nothing_yet_is_there(slot: Slot) -> None:
    """A process is seen before it loads the registry; so is one whose version does not say how far it is."""
    trust = slot.trust()
    starting, old = slot.holder(trust), slot.holder(None, "worker")
    await starting.announce()
    assert await old._told(60_000, "m-1")
    await slot.redis.hdel(slot.keys.followers, old.name)
    start = positions.start("control")
    assert await slot.applied() == {starting.name: start, old.name: None}
    await slot.clients.register_client("acme", actor="system")
    await trust.poll()
    await starting.announce()
    said = await slot.applied()
    assert said.pop(old.name) is None
    assert said[starting.name] > start


async def test_who_was_killed_is_tidied_away(slot: Slot) -> None:
    """What it said is forgotten by the next that says something, in both places."""
    assert await slot.holder(None)._told(1, "m-1", "5-0")

    async def gone() -> bool:
        return not await slot.applied()

    await wait_until(gone)
    other = slot.holder(None)
    await other.announce()
    assert await slot.redis.hkeys(slot.keys.followers) == [other.name.encode()]
