"""A repair that dies at any of its steps: the log stays refused, and the next one makes it whole."""

from __future__ import annotations

import asyncio
import os

import pytest
import redis.exceptions

from broker.errors import LeaseLost, LogRefused, LogUnavailable
from broker.events import connection, log_identity
from broker.events.repair.lease import RepairLease
from broker.events.repair.making import Maker
from broker.projections import checkpoints
from broker.projections.repairing import StoredTables
from support import commands
from support.rig import Recorder
from support.waiting import wait_until


class Dying:
    """A client whose connection is gone for good after so many commands, as a killed process' is."""

    def __init__(self, url: str, after: int) -> None:
        self.client = connection.connect(url)
        self.left = after
        self.client.execute_command = self._wrapped(self.client.execute_command)
        pipeline = self.client.pipeline

        def made(**options):
            pipe = pipeline(**options)
            pipe.execute = self._wrapped(pipe.execute)
            return pipe

        self.client.pipeline = made

    def _wrapped(self, call):
        async def counted(*args, **options):
            self.left -= 1
            if self.left < 0:
                raise redis.exceptions.ConnectionError("killed")
            return await call(*args, **options)

        return counted


async def test_a_repair_killed_at_any_step_is_completed_by_the_next(world, valkey):
    """⚠ Streams made and not in place, some in place and others not: refused meanwhile, equal in the end."""
    done = await world.submit(4)
    async with world.working(channels=[Recorder()]):
        await world.all_finished(done)
    await world.clients.register_client("acme", actor="system")
    await world.archive()
    old = await world.snapshot()
    await world.submit(4)
    await world.clients.register_client("late", actor="system")
    await world.archive()
    await world.project()
    before = await world.derived()
    whole = Dying(valkey.url, 10**6)
    await world.empty()
    await world.repair(redis=whole.client).run()
    steps = 10**6 - whole.left
    await whole.client.connection_pool.disconnect()
    assert await world.derived() == before
    for turn, step in enumerate(range(3, steps)):
        await (world.empty() if turn % 2 else world.roll_back(old))
        dying = Dying(valkey.url, step)
        try:
            await world.repair(redis=dying.client).run()
        except LogUnavailable:
            with pytest.raises(LogRefused):
                await used(world)
        else:
            assert step > steps - 10
        await world.redis.delete(f"{world.keys.control.base}:repair-lease")
        await dying.client.connection_pool.disconnect()
        report = await world.repair().run()
        assert report.lost == 0
        assert await world.derived() == before
        assert not [name for name in await world.names() if b":repair:" in name]
    await world.renew()
    seen = Recorder()
    async with world.working(channels=[seen]):
        await world.all_finished(await world.submit(1))
    assert len(seen.seen) == 5


async def test_a_repair_that_another_has_followed_changes_nothing_more(world):
    """⚠ Paused so long that its lease ran out: its fences are the other's, and each of its steps is refused."""
    await world.submit(2)
    before = await world.derived()
    paused, other = (RepairLease(world.redis, world.keys) for _ in range(2))
    work = await world.repair()._plan(world.identity, world.keys)
    await paused.fence(world.keys.streams)
    await other.fence(world.keys.streams)
    with pytest.raises(LeaseLost):
        await Maker(world.redis, paused.token, world.identity).switch(work.plans[0])
    with pytest.raises(LeaseLost):
        await paused.lift(world.keys.streams)
    assert await world.derived() == before
    await other.lift(world.keys.streams)
    with pytest.raises(LogRefused):
        await world.submit(1)
    await world.repaired()
    await world.submit(1)


async def test_a_repair_that_goes_on_after_another_leaves_the_tables_alone(world):
    """⚠ Stopped by Ctrl-Z while it read, another gone through, messages projected: then it goes on, and ends."""

    class Stopped(StoredTables):
        async def recorded(self, stream, after):
            if world.identity.incarnations["0"] == "inc-0":
                await world.redis.delete(f"{world.keys.control.base}:repair-lease")
                await world.repaired()
                await world.submit(2)
                await world.project()
            async for rows in super().recorded(stream, after):
                yield rows

    await world.submit(2)
    await world.project()
    paused = world.repair()
    paused._tables = Stopped(world.store)
    with pytest.raises(LeaseLost, match="Another repair"):
        await paused.run()
    followed = {row.incarnation for row in await checkpoints.everything(world.store)}
    assert followed == set(world.identity.incarnations.values())
    await world.submit(2)
    await world.project()
    (row,) = await world.store.select("SELECT COUNT(*) AS n FROM messages")
    assert row["n"] == 6


async def test_a_role_whose_log_was_repaired_ends_with_a_failure(world, valkey, repair_url):
    """Service managers that restart only what failed start it again, too (WinSW)."""
    given = {
        "DATA_DIR": world.directory,
        "LOG_NAME": world.log_name,
        "PARTITIONS": world.partitions,
        "REDIS_URL": valkey.url,
        "MYSQL_URL": repair_url,
        "PROJECTOR_METRICS_PORT": 0,
    }
    env = dict(os.environ) | {f"BROKER_{name}": str(value) for name, value in given.items()}
    ended = asyncio.create_task(asyncio.to_thread(commands.run, "projector", env=env))
    await wait_until(lambda: world.redis.hget(world.keys.partitions[0].lease, "owner"), within=60)
    await world.empty()
    await world.repaired()
    done = await ended
    assert (done.returncode, "log_repaired" in done.stdout + done.stderr) == (75, True)


async def used(world) -> None:
    """What a role does first, and then with what it has learnt."""
    world.identity = await log_identity.load(world.redis, world.settings)
    found = await world.repair().examine()
    if found.refused:
        raise LogRefused(found.refused[0])
