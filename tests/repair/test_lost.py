"""A Redis that lost what it knew: everything in it comes back from archive and tables, and nothing happens twice."""

from __future__ import annotations

import msgspec
import pytest

from broker.domain.message import Refused
from broker.domain.retry import RetryPolicy
from broker.errors import LogRefused
from broker.events import log_identity
from support.rig import QUICK, Recorder
from support.waiting import wait_until

SLOW = msgspec.structs.replace(QUICK, retry=RetryPolicy(interval=3600.0))


async def test_an_emptied_redis_comes_back_whole(world):
    """Delivered, waiting, fresh and parked messages, keys, registry: as they were; each open one is delivered once."""
    await world.clients.register_client("acme", actor="system")
    await wait_until(lambda: world.trust.client("acme"))
    done = await world.submit(6)
    first = Recorder()
    async with world.working(channels=[first], limits=SLOW):
        await world.all_finished(done)
        first.answer = Refused("not now", 503)
        waiting = await world.submit(4, client="acme")
        await wait_until(lambda: len(first.seen) == 10)
        for one in waiting:
            await wait_until(lambda one=one: _phase(world, one, "due"))
    fresh = await world.submit(4)
    await world.archive()
    await world.project()
    before = await world.derived()
    await world.empty()
    with pytest.raises(LogRefused, match="streams repair"):
        await log_identity.load(world.redis, world.settings)

    shown = await world.repair().examine()
    assert not shown.done
    assert (shown.lost, shown.keys_lost) == (0, [])
    assert await world.names() == []
    report = await world.repaired()
    assert sum(one.open for one in report.streams if one.open is not None) == 8
    assert await world.derived() == before
    second = Recorder()
    async with world.working(channels=[second], limits=SLOW):
        await world.all_finished(fresh)
        more = await world.submit(2)
        await world.all_finished(more)
    assert sorted(second.seen) == sorted([*fresh, *more])
    await world.archive()
    await world.project()
    rows = await world.store.select(
        "SELECT status,COUNT(*) AS n FROM messages GROUP BY status ORDER BY status"
    )
    assert [(row["status"], row["n"]) for row in rows] == [("delivered", 12), ("queued", 4)]


async def _phase(world, message_id: bytes, phase: str) -> bool:
    found = await world.state(message_id)
    return getattr(found, "phase", None) == phase
