"""What holds a stream from being cut, one after another; and that nothing is missed afterwards."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import asynccontextmanager

import pytest

from broker.domain.message import End, Retry
from broker.domain.message import Park as ParkDecision
from broker.errors import LeaseLost, LogFull, LogRefused, StoreUnavailable
from broker.events import connection, open_messages, types
from broker.events.appender import Appender
from broker.events.archive import reader, trimming
from broker.events.archive.storage import ArchiveUnavailable
from broker.events.archive.trimming import Trimmer
from broker.events.delivery_log import DeliveryLog
from broker.events.feed import Feed
from broker.events.positions import Position, at, start
from broker.events.reopening import Asked, Reopening
from broker.services.delivery.settlements import settlement
from support import archives, histories, log
from support.waiting import wait_until

FAR = Position("0", 10**14, 0)
"""A checkpoint that holds nothing."""


class Bench:
    """One partition, a worker, an archiver that has archived everything, and a trimmer to be called by hand."""

    def __init__(self, redis, keys, identity, directory) -> None:
        self.redis, self.keys, self.directory = redis, keys, directory
        self.stream = keys.partitions[0]
        self.appender = Appender(redis, keys, identity)
        self.worker = DeliveryLog(redis, self.stream, identity, "w", outcomes_kept_ms=log.OUTCOMES_KEPT_MS)
        self.reopening = Reopening(redis, keys, identity, outcomes_kept_ms=log.OUTCOMES_KEPT_MS)
        self.archiver = archives.archiver(redis, self.stream, directory)
        self.needs: dict[str, Position] = {}
        self.keep = 0
        self.trimmer = Trimmer([self.archiver], self._all_needs, lambda: self.keep)
        self.status = self.trimmer.status["0"]

    async def _all_needs(self):
        return {"0": self.needs}

    async def submit(self, count: int = 1) -> list[bytes]:
        drafts = [log.draft() for _ in range(count)]
        await self.appender.append(drafts)
        return [one.message_id for one in drafts]

    async def claim(self, count: int = 100):
        return await self.worker.admit(await self.worker.read(count, self.redis, block_ms=1))

    async def end(self, tasks, decision=None) -> None:
        decision = decision or End("delivered")
        items = [
            settlement(task, task.claim, decision, None, channel="x", latency_ms=1, actor="worker:w")
            for task in tasks
        ]
        assert None not in await self.worker.settle(items)

    async def drain(self) -> None:
        """Let the worker see everything; what stands for no attempt is acknowledged."""
        while claims := await self.worker.read(100, self.redis, block_ms=1):
            await self.worker.admit(claims)

    async def ids(self) -> list[Position]:
        return [one.position for one in await archives.lying(self.redis, self.stream)]

    async def archived(self) -> None:
        """Wait until every event is archived and Redis knows."""
        last = (await self.redis.xrevrange(self.stream.events, count=1))[0][0]

        async def known() -> bool:
            return await self.redis.hget(self.stream.archive, "position") == last

        await wait_until(known)

    async def trim(self) -> int:
        return await self.trimmer.trim(self.archiver, self.needs)

    async def state(self, message_id: bytes):
        return (await open_messages.look_up(self.redis, self.keys, [message_id]))[0]


@asynccontextmanager
async def benches(redis, log_name, directory):
    keys, identity = await log.create(redis, log_name)
    made = Bench(redis, keys, identity, directory)
    await made.worker.ensure_group()
    await made.worker.renew([], 60_000)
    async with archives.running(made.archiver):
        await wait_until(lambda: made.archiver.owning)
        yield made


@pytest.fixture
async def bench(redis, log_name, tmp_path):
    async with benches(redis, log_name, tmp_path / "archive") as made:
        yield made


async def finished(bench, count: int = 5) -> list[bytes]:
    """Messages delivered, seen by everybody, archived: nothing holds them."""
    messages = await bench.submit(count)
    await bench.end(await bench.claim())
    await bench.drain()
    await bench.archived()
    return messages


async def test_what_nobody_needs_is_cut(bench):
    """Delivered, archived and projected events leave Redis; the entry at the bound stays."""
    await finished(bench)
    before = await bench.ids()
    bench.needs = {"messages": before[-1]}
    assert await bench.trim() == len(before) - 1
    assert await bench.ids() == before[-1:]
    assert (bench.status.holder, bench.status.overdue_seconds) == ("", 0.0)
    assert bench.status.removed == len(before) - 1
    assert await bench.trim() == 0


async def test_history_that_is_wanted_stays(bench):
    """Nothing younger than the history to keep is cut, however little it is needed."""
    await finished(bench)
    bench.keep = 3_600_000
    assert await bench.trim() == 0
    assert bench.status.holder == ""
    bench.keep = 1
    await wait_until(bench.trim)


async def test_a_projection_holds(bench):
    """The smallest checkpoint rules; what it has not applied stays, and it can read on exactly from there."""
    await finished(bench)
    before = await bench.ids()
    bench.needs = {"messages": before[-1], "audit_log": before[6]}
    assert await bench.trim() == 6
    assert await bench.ids() == before[6:]
    assert bench.status.holder == "audit_log"
    assert bench.status.overdue_seconds > 0
    feed = Feed(bench.redis, bench.stream, "inc-0", "p", 5.0)
    assert await feed.acquire() == 0
    page = await feed.read(before[6], 7, before[-1], 100)
    assert [one.position for one in page.entries] == before[7:]


async def test_a_projection_without_checkpoint_blocks(bench):
    """⚠ A read model that has not begun needs everything."""
    await finished(bench)
    bench.needs = {"messages": FAR, "new": start("0")}
    assert await bench.trim() == 0
    assert bench.status.holder == "new"


async def test_what_is_not_archived_holds(bench):
    """⚠ With the archive stuck nothing is cut beyond it, and the overdue time rises."""
    await finished(bench)
    end = (await bench.ids())[-1]

    def stuck(*_):
        raise ArchiveUnavailable("full")

    bench.archiver.archive.put_segment = stuck
    await finished_but_for_the_archive(bench)
    await bench.trim()
    assert (await bench.ids())[0] == end
    assert bench.status.holder == "archive"
    first = bench.status.overdue_seconds

    async def rises() -> bool:
        await bench.trim()
        return bench.status.overdue_seconds > first > 0

    await wait_until(rises)
    assert bench.status.holder == "archive"


async def finished_but_for_the_archive(bench) -> None:
    await bench.submit(5)
    await bench.end(await bench.claim())
    await bench.drain()


async def test_pending_and_undelivered_entries_hold(bench):
    """⚠ What a worker has in hand, or nobody has read, stays: the lowest pending entry rules."""
    await finished(bench)
    [held] = await bench.submit(1)
    [task] = await bench.claim()
    await finished(bench, 3)
    [unread] = await bench.submit(1)
    await bench.archived()
    await bench.trim()
    assert (await bench.ids())[0] == task.claim.position
    assert bench.status.holder == "delivery"
    await bench.end([task])
    await bench.archived()
    await bench.trim()
    ids = await bench.ids()
    assert task.claim.position < ids[0] < (await bench.state(unread)).position
    assert bench.status.holder == "delivery"
    assert [one.open.message_id for one in await bench.claim()] == [unread]
    assert (await bench.state(held)).outcome == "delivered"


async def test_a_missing_group_blocks(bench):
    """⚠ With the delivery group destroyed nobody knows what was delivered: nothing is cut until it is back."""
    await finished(bench)
    await bench.redis.xgroup_destroy(bench.stream.events, "delivery")
    assert await bench.trim() == 0
    assert bench.status.holder == "delivery"
    assert bench.status.overdue_seconds > 0
    await bench.worker.ensure_group()
    assert await bench.trim() > 0


async def test_a_recreated_group_finds_every_open_message(bench):
    """⚠ Destroyed after trimming, the group is made before the oldest open message, and all are delivered."""
    messages = [(await bench.submit(1))[0]]
    await finished_but_for(bench, messages)
    bench.keep = 0
    await bench.archived()
    await bench.trim()
    await bench.redis.xgroup_destroy(bench.stream.events, "delivery")
    await bench.worker.ensure_group()
    assert {task.open.message_id for task in await bench.claim()} == set(messages)


async def finished_but_for(bench, left: list[bytes]) -> None:
    """Five more messages, delivered; those in `left` were given back."""
    await bench.submit(5)
    tasks = await bench.claim()
    await bench.end([task for task in tasks if task.open.message_id not in left])
    await bench.worker.release([task.claim for task in tasks if task.open.message_id in left])
    await bench.drain()


@pytest.mark.parametrize("how", ["due", "parked"])
async def test_a_waiting_message_does_not_hold(bench, how):
    """⚠ The body of what waits long or is parked moves aside; it is delivered afterwards, body and all."""
    [waiting] = await bench.submit(1)
    tasks = await bench.claim()
    await bench.end(tasks, Retry(3_600_000) if how == "due" else ParkDecision("look"))
    await finished(bench)
    before = await bench.ids()
    assert await bench.trim() == len(before) - 1
    body = await bench.redis.hget(bench.stream.bodies, waiting)
    assert body.startswith(b"MessageSubmitted|")
    assert bench.status.moved == (how == "due")
    if how == "due":
        await bench.redis.zadd(bench.stream.due, {waiting: 0})
        assert (await bench.worker.pump())[0] == 1
    else:
        await bench.reopening.unpark(waiting, "demo", 1, Asked("user:x", 1))
    await bench.archived()
    await bench.trim()
    [task] = await bench.claim()
    assert (task.open.message_id, task.sealed) == (waiting, b"sealed")
    await bench.end([task])
    assert not await bench.redis.hexists(bench.stream.bodies, waiting)
    assert (await bench.state(waiting)).outcome == "delivered"


async def test_bodies_that_are_not_moved_yet_hold(bench, monkeypatch):
    """⚠ Only so many move at a time: the stream is cut up to the oldest of the others, and further the next time."""
    monkeypatch.setattr(trimming, "BODIES", 2)
    waiting = await bench.submit(5)
    await bench.end(await bench.claim(), Retry(3_600_000))
    await finished(bench)
    positions = [(await bench.state(one)).position for one in waiting]
    for moved in (2, 4):
        await bench.trim()
        assert set(await bench.redis.hkeys(bench.stream.bodies)) == set(waiting[:moved])
        # By its milliseconds: those submitted in the same one stay, too.
        assert (await bench.ids())[0].ms == positions[moved].ms
        assert set(positions[moved:]) <= set(await bench.ids())
    assert bench.status.holder == "open"
    await bench.trim()
    assert len(await bench.ids()) == 1


async def test_a_due_retry_holds_only_its_own_event(bench):
    """⚠ Once due, the entry that a worker has yet to read stays; the body, submitted long before, does not hold."""
    [waiting] = await bench.submit(1)
    await bench.end(await bench.claim(), Retry(3_600_000))
    await finished(bench)
    # Due before its body was ever moved.
    await bench.redis.zadd(bench.stream.due, {waiting: 0})
    await bench.worker.pump()
    due_at = at("0", (await bench.redis.xrevrange(bench.stream.events, count=1))[0][0])
    await bench.archived()
    await bench.trim()
    ids = await bench.ids()
    assert due_at in ids
    assert Position("0", (await bench.state(waiting)).position.ms, 0) < ids[0]
    await bench.redis.xgroup_destroy(bench.stream.events, "delivery")
    await bench.worker.ensure_group()
    [task] = await bench.claim()
    assert (task.open.message_id, task.sealed) == (waiting, b"sealed")


async def test_the_database_away_blocks(bench):
    """Without the checkpoints nothing is cut; what it would have been shows as overdue."""
    await finished(bench)

    async def away():
        raise StoreUnavailable

    trimmer = Trimmer([bench.archiver], away, lambda: 0)
    await trimmer.round()
    assert trimmer.status["0"].holder == "database"
    assert trimmer.status["0"].overdue_seconds > 0
    assert await bench.trim() > 0


async def test_an_archive_that_was_removed_blocks(bench):
    """⚠ The newest segment must still be there when the stream is cut on its word."""
    await finished(bench)
    shutil.move(bench.directory, f"{bench.directory}-gone")
    assert await bench.trim() == 0
    assert bench.status.holder == "archive"
    shutil.move(f"{bench.directory}-gone", bench.directory)

    async def cut() -> int:
        await bench.trimmer.round()
        return bench.status.removed

    await wait_until(cut)


async def test_only_the_owner_cuts(bench):
    """⚠ The lease is checked in the script that cuts, the incarnation too."""
    await finished(bench)
    before = await bench.ids()
    await bench.redis.hset(bench.stream.meta, "incarnation", "another")
    with pytest.raises(LogRefused):
        await bench.trim()
    await bench.redis.hset(bench.stream.meta, "incarnation", "inc-0")
    await wait_until(lambda: bench.archiver.owning)
    await bench.redis.hincrby(bench.stream.archive_lease, "epoch", 1)
    with pytest.raises(LeaseLost):
        await bench.trim()
    assert await bench.ids() == before


async def test_streams_without_delivery(redis, log_name, tmp_path):
    """Control and access are cut below archive and checkpoints alone."""
    keys, _ = await log.create(redis, log_name)
    for stream in (keys.control, keys.access):
        facts = [histories.Fact(b"client:a", types.ClientRegistered("a")) for _ in range(10)]
        ends = await histories.append(redis, stream, facts)
        one = archives.archiver(redis, stream, tmp_path)

        async def needs(stream=stream, ends=ends):
            return {stream.stream: {"clients": ends[7]}}

        async with archives.running(one):
            trimmer = Trimmer([one], needs, lambda: 0, interval=0.01)
            stop = asyncio.Event()
            task = asyncio.create_task(trimmer.run(stop))

            async def cut(stream=stream) -> bool:
                return await redis.xlen(stream.events) == 3

            await wait_until(cut)
            stop.set()
            await task


async def test_history_reads_on_across_trimming(bench):
    """Archive then stream, from any position, is the whole history, however much was cut meanwhile."""
    await finished(bench)
    everything = await archives.lying(bench.redis, bench.stream)
    await bench.trim()
    await finished(bench)
    everything += [
        one
        for one in await archives.lying(bench.redis, bench.stream)
        if one.position > everything[-1].position
    ]
    await bench.trim()
    await bench.submit(2)
    everything += (await archives.lying(bench.redis, bench.stream))[-2:]
    for after in (start("0"), *(one.position for one in everything)):
        expected = [one for one in everything if one.position > after]
        assert await archives.whole(bench.redis, bench.stream, bench.archiver.archive, after) == expected


async def test_what_is_cut_under_a_reader_is_found_in_the_archive(redis, log_name, tmp_path, monkeypatch):
    """⚠ A reader in the middle of the stream loses what lies before it to the archive, and reads on there."""
    monkeypatch.setattr(reader, "PAGE", 4)
    keys, _ = await log.create(redis, log_name)
    stream = keys.control
    await histories.append(redis, stream, histories.happy(5))
    everything = await archives.lying(redis, stream)
    one = archives.archiver(redis, stream, tmp_path)
    found: list = []
    walk = reader.history(one.archive, redis, stream, "inc-control", start("control"))
    found += await anext(walk)
    assert found == everything[:4]
    async with archives.running(one):

        async def cut() -> int:
            trimmer = Trimmer([one], _nobody, lambda: 0)
            await trimmer.round()
            return await redis.xlen(stream.events) == 1

        await wait_until(cut)
    async for block in walk:
        found += block
    assert found == everything


async def _nobody():
    return {}


async def test_events_that_are_nowhere_are_a_gap(redis, log_name, tmp_path):
    """What left the stream and is not in the archive is an error, not a shorter history."""
    keys, _ = await log.create(redis, log_name)
    stream = keys.partitions[0]
    await histories.append(redis, stream, histories.happy(5))
    await redis.xtrim(stream.events, maxlen=3, approximate=False)
    with pytest.raises(reader.HistoryGap, match="lost its first 12 events"):
        await archives.whole(redis, stream, archives.stream_archive(tmp_path))


async def test_a_full_log_is_emptied(own_valkey, log_name, tmp_path):
    """⚠ Past `maxmemory` nothing is accepted, but history is archived and cut all the same, and that makes room."""
    redis = connection.connect(own_valkey.url)
    async with benches(redis, log_name, tmp_path / "archive") as bench:
        for _ in range(4):
            await bench.submit(400)
            await bench.end(await bench.claim(400))
            await bench.drain()
        used = (await redis.info("memory"))["used_memory"]
        await redis.config_set("maxmemory", used - 100_000)
        with pytest.raises(LogFull):
            await bench.submit(1)
        await bench.drain()
        await bench.archived()
        assert await bench.trim() > 4000
        await bench.submit(1)
    await redis.aclose()
