"""Lease, fenced read and doorbell against a real server."""

from __future__ import annotations

import asyncio

import pytest

from broker.errors import LeaseLost, LogRefused
from broker.events import connection, positions
from broker.events import feed as feeds
from broker.events.feed import Feed, HistoryTrimmed, Malformed
from broker.events.keys import PROJECTION_GROUP
from support import histories, log
from support.waiting import wait_until

START = positions.start("0")


@pytest.fixture
async def setup(redis, log_name):
    """A log's first partition and a maker of feeds on it."""
    keys, _ = await log.create(redis, log_name)
    stream = keys.partitions[0]

    def feed(owner: str = "p1", ttl: float = 30.0, incarnation: str = "inc-0") -> Feed:
        return Feed(redis, stream, incarnation, owner, ttl)

    return stream, feed


async def test_one_owner_at_a_time(setup):
    """A lease is one process's until it expires or is given back; each owner has a higher epoch."""
    _, feed = setup
    one, two = feed("p1", 0.2), feed("p2", 0.2)
    assert await one.acquire() == 0
    assert 0 < await two.acquire() <= 0.2
    assert (one.epoch, two.epoch) == (1, 0)

    async def taken() -> bool:
        return await two.acquire() == 0

    await wait_until(taken)
    assert two.epoch == 2
    with pytest.raises(LeaseLost):
        await one.renew(START)
    assert one.epoch == 0
    assert not await one.release()
    assert await two.release()
    assert await one.acquire() == 0
    assert one.epoch == 3


async def test_clock_that_went_back_does_not_keep_a_lease_for_ever(redis, setup):
    """A lease that seems to last longer than any was given is free."""
    stream, feed = setup
    assert await feed("dead", 1).acquire() == 0
    await redis.hset(stream.lease, "expires", 9_999_999_999_999)
    assert await feed("p2").acquire() == 0


async def test_lapsed_lease_that_nobody_took_goes_on(redis, setup):
    """A pause longer than the lease costs nothing while nobody else wanted the stream."""
    stream, feed = setup
    one = feed()
    await one.acquire()
    await redis.hset(stream.lease, "expires", 1)
    await one.renew(START)
    assert await feed("p2").acquire() > 0


async def test_read_from_the_named_position(redis, setup):
    """The owner's position rules, wherever the group stands; nothing becomes pending."""
    stream, feed = setup
    facts = histories.happy(4)
    at = await histories.append(redis, stream, facts)
    one = feed()
    await one.acquire()
    for after, read in ((START, 0), (at[5], 6), (at[1], 2), (at[1], 2)):
        page = await one.read(after, read, after, 5)
        expected = [fact.stored(position) for fact, position in zip(facts, at, strict=True)][read : read + 5]
        assert page.entries == expected
        assert (page.last, page.added) == (at[-1], 12)
    assert (await redis.xpending(stream.events, PROJECTION_GROUP))["pending"] == 0


async def test_group_shows_the_lag(redis, setup):
    """XINFO GROUPS knows how far the read models are, even from the middle of a stream."""
    stream, feed = setup
    at = await histories.append(redis, stream, histories.happy(10))
    one = feed()
    await one.acquire()
    await one.read(at[9], 10, at[9], 5)
    assert (await redis.xinfo_groups(stream.events))[0]["lag"] == 15
    ahead = await feeds.ahead(redis, stream, at[9])
    assert (ahead.last, ahead.added, ahead.next) == (at[-1], 30, at[10])
    end = await feeds.ahead(redis, stream, at[-1])
    assert end.next is None


async def test_group_destroyed_or_never_made(redis, setup):
    """The group is made where it is missing, at the owner's position."""
    stream, feed = setup
    one = feed()
    await one.acquire()
    assert (await one.read(START, 0, START, 5)).entries == []
    at = await histories.append(redis, stream, histories.happy(2))
    await one.read(START, 0, START, 3)
    await redis.xgroup_destroy(stream.events, PROJECTION_GROUP)
    page = await one.read(at[2], 3, at[2], 10)
    assert [entry.position for entry in page.entries] == at[3:]


async def test_only_the_owner_reads(redis, setup):
    """A read needs the lease, the epoch and the incarnation."""
    stream, feed = setup
    await histories.append(redis, stream, histories.happy(1))
    one = feed()
    with pytest.raises(LeaseLost):
        await one.read(START, 0, START, 5)
    await one.acquire()
    thief = feed("p1")
    thief.epoch = one.epoch + 1
    with pytest.raises(LeaseLost):
        await thief.read(START, 0, START, 5)
    with pytest.raises(LogRefused):
        await feed(incarnation="older").acquire()
    await redis.hset(stream.meta, "incarnation", "next")
    with pytest.raises(LogRefused):
        await one.read(START, 0, START, 5)


@pytest.mark.parametrize("gone", ["emptied", "shorter"])
async def test_stream_that_lost_data(redis, setup, gone):
    """⚠ A stream that ends before a checkpoint is refused for reads and, by its mark, for appends."""
    stream, feed = setup
    at = await histories.append(redis, stream, histories.happy(1))
    await redis.delete(stream.events)
    if gone == "shorter":
        await redis.xadd(stream.events, histories.submitted().fields(), id=f"{at[0].ms - 1}-0")
    one = feed()
    await one.acquire()
    with pytest.raises(LogRefused, match="lost data"):
        await one.read(START, 0, at[-1], 5)
    with pytest.raises(LogRefused):
        await feed("p2").acquire()
    assert await redis.hexists(stream.meta, "refused")


async def test_renewal_notices_lost_data(redis, setup):
    """An idle owner finds out as well."""
    stream, feed = setup
    at = await histories.append(redis, stream, histories.happy(1))
    one = feed()
    await one.acquire()
    await one.renew(at[-1])
    await redis.delete(stream.events)
    with pytest.raises(LogRefused):
        await one.renew(at[-1])


async def test_trimmed_events_are_missed(redis, setup):
    """Reading from before what was trimmed is an error; reading from its end is not."""
    stream, feed = setup
    at = await histories.append(redis, stream, histories.happy(4))
    await redis.xtrim(stream.events, maxlen=6, approximate=False)
    one = feed()
    await one.acquire()
    with pytest.raises(HistoryTrimmed):
        await one.read(START, 0, at[-1], 20)
    with pytest.raises(HistoryTrimmed):
        await one.read(at[4], 5, at[-1], 20)
    assert len((await one.read(at[5], 6, at[-1], 20)).entries) == 6
    await redis.xtrim(stream.events, maxlen=0, approximate=False)
    assert (await one.read(at[-1], 12, at[-1], 20)).entries == []
    with pytest.raises(HistoryTrimmed):
        await one.read(at[-2], 11, at[-1], 20)


async def test_entries_that_are_no_events(redis, setup):
    """Whatever else lies in the stream is given as what it is, in its place."""
    stream, feed = setup
    await redis.xadd(stream.events, {"a": "b"})
    await redis.xadd(stream.events, {"t": b"\xff", "s": "", "m": "", "d": ""})
    await histories.append(redis, stream, histories.happy(1))
    one = feed()
    await one.acquire()
    page = await one.read(START, 0, START, 10)
    assert [isinstance(entry, Malformed) for entry in page.entries] == [True, True, False, False, False]


async def test_doorbell(redis, setup):
    """The doorbell rings for an event after the position, at once for one that is there already."""
    stream, feed = setup
    one = feed()
    waiting = asyncio.create_task(one.wait(START))
    at = await histories.append(redis, stream, histories.happy(1))
    assert await waiting
    assert await one.wait(START)
    assert not await feed(ttl=0.03).wait(at[-1])


async def test_waiting_writes_nothing(own_valkey, log_name):
    """An idle owner adds nothing to the append-only file between renewals."""
    # A server of its own: what expires of other tests is written, too.
    redis = connection.connect(own_valkey.url)
    keys, _ = await log.create(redis, log_name)
    stream = keys.partitions[0]

    def feed(ttl: float = 30.0) -> Feed:
        return Feed(redis, stream, "inc-0", "p1", ttl)

    at = await histories.append(redis, stream, histories.happy(1))
    one = feed(ttl=30)
    await one.acquire()
    await one.read(START, 0, START, 10)
    await one.read(at[-1], 3, at[-1], 10)
    before = (await redis.info("replication"))["master_repl_offset"], await redis.info("persistence")
    for _ in range(3):
        await feed(ttl=0.03).wait(at[-1])
        await one.renew(at[-1])
        await one.read(at[-1], 3, at[-1], 10)
    after = (await redis.info("replication"))["master_repl_offset"], await redis.info("persistence")
    await redis.aclose()
    assert after[1]["aof_current_size"] == before[1]["aof_current_size"]


async def test_full_memory_does_not_stop_reading(own_valkey, log_name):
    """At maxmemory the read models still drain the log, so that it can be trimmed."""
    redis = connection.connect(own_valkey.url)
    keys, _ = await log.create(redis, log_name)
    stream = keys.partitions[0]
    await histories.append(redis, stream, histories.happy(10))
    await redis.config_set("maxmemory", 1)
    one = Feed(redis, stream, "inc-0", "p1", 30)
    assert await one.acquire() == 0
    assert len((await one.read(START, 0, START, 100)).entries) == 30
    await one.release()
    await redis.aclose()
