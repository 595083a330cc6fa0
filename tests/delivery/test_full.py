"""A Redis at its limit, or busy rewriting its file, with messages in hand: the queue drains."""

from __future__ import annotations

import pytest

from broker.domain.message import Accepted, Failed
from broker.errors import LogFull
from broker.events import connection
from support.rig import Recorder, Rig
from support.waiting import wait_until


@pytest.fixture
async def own_rig(own_valkey, tmp_path, log_name):
    """A rig on a Valkey of its own."""
    redis = connection.connect(own_valkey.url, timeout=1.0)
    made = await Rig(own_valkey.url, redis, tmp_path / "rig", log_name).create()
    yield made
    await made.aclose()
    await redis.aclose()


async def test_a_full_log_still_drains(own_rig):
    """⚠ Past `maxmemory` nothing is accepted, but messages are claimed, retried, taken over and ended."""
    channel = Recorder(lambda delivery: Accepted() if delivery.attempt > 1 else Failed("away"))
    channel.gate.clear()
    async with own_rig.working(channels=[channel]):
        messages = await own_rig.submit(60)
        await wait_until(lambda: len(channel.seen) == 32)
        await own_rig.redis.config_set("maxmemory", "1mb")
        with pytest.raises(LogFull):
            await own_rig.submit(1)
        channel.gate.set()
        done = await own_rig.all_finished(messages)
    assert {(one.outcome, one.attempts) for one in done} == {("delivered", 2)}
    for partition in own_rig.keys.partitions:
        await own_rig.redis.xgroup_destroy(partition.events, "delivery")
    async with own_rig.working():
        await own_rig.redis.config_set("maxmemory", "0")
        await own_rig.all_finished(await own_rig.submit(5))


async def test_rewriting_the_file_during_load_loses_nothing(own_rig, own_valkey):
    """AOF rewrites while messages pass, then kill -9: claims, retries and outcomes are all there again."""
    channel = Recorder(lambda delivery: Accepted() if delivery.attempt > 1 else Failed("away"))
    messages = []

    async def rewritten() -> bool:
        return not (await own_rig.redis.info("persistence"))["aof_rewrite_in_progress"]

    async with own_rig.working(channels=[channel]):
        for round_ in range(4):
            await wait_until(rewritten)
            await own_rig.redis.bgrewriteaof()
            messages += await own_rig.submit(200)
            await wait_until(lambda seen=200 * round_ + 50: len(channel.seen) > seen)
        await own_valkey.kill()
        await own_valkey.start()
        done = await own_rig.all_finished(messages)
    assert {(one.outcome, one.attempts) for one in done} == {("delivered", 2)}
    attempts = 0
    for partition in own_rig.keys.partitions:
        entries = await own_rig.redis.xrange(partition.events)
        attempts += sum(fields[b"t"] == b"DeliveryAttempted" for _, fields in entries)
    assert attempts == 2 * len(messages)
