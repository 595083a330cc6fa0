"""Cutting all the time beside workers at work: nobody notices."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress

import pytest

from broker.domain import ids
from broker.domain.message import Accepted, Failed
from broker.events.archive.archiver import Limits
from broker.events.archive.trimming import Trimmer
from broker.events.codec import recorded
from support import archives
from support.rig import Recorder, Rig
from support.waiting import wait_until

BUSY = Limits(size=3_000, seconds=0.01, poll=0.005, page=50)


@pytest.fixture
async def rig(valkey, redis, tmp_path, log_name):
    made = await Rig(valkey.url, redis, tmp_path / "rig", log_name).create()
    yield made
    await made.aclose()


async def test_messages_pass_streams_that_are_cut_all_the_time(rig, tmp_path, monkeypatch):
    """⚠ Retries, a worker that dies, a group that is destroyed, and every few milliseconds a cut: one outcome each.

    Afterwards archive and stream hold each message's whole story, once.
    """
    monkeypatch.setattr(archives, "LOG_ID", rig.log_name)
    archivers = [
        archives.archiver(rig.redis, stream, tmp_path / "archive", limits=BUSY)
        for stream in rig.keys.partitions
    ]

    async def needs():
        return {}

    trimmer = Trimmer(archivers, needs, lambda: 0, interval=0.005)
    stop = asyncio.Event()
    channel = Recorder(lambda delivery: Accepted() if delivery.attempt > 1 else Failed("away"))
    messages: list[bytes] = []
    async with archives.running(*archivers):
        cutting = asyncio.create_task(trimmer.run(stop))
        async with rig.working(channels=[channel]), rig.working(channels=[channel]):
            for turn in range(6):
                messages += await rig.submit(60)
                if turn == 2:
                    dying = asyncio.create_task(rig.worker(channels=[channel]).run(asyncio.Event()))
                    await wait_until(lambda: len(channel.seen) > 100)
                    dying.cancel()
                    with suppress(asyncio.CancelledError):
                        await dying
                if turn == 4:
                    await rig.redis.xgroup_destroy(rig.keys.partitions[0].events, "delivery")
            done = await rig.all_finished(messages)
            # What the dead worker had in hand holds the stream until another has taken it over.
            await wait_until(lambda: all(one.removed > 800 for one in trimmer.status.values()), within=90)
        stop.set()
        await cutting
        assert {(one.outcome, one.attempts) for one in done} == {("delivered", 2)}
        story = await _story(rig, archivers)
    expected = [
        "MessageSubmitted",
        "DeliveryAttempted",
        "RetryScheduled",
        "DeliveryDue",
        "DeliveryAttempted",
        "Delivered",
    ]
    assert set(story) == set(messages)
    assert Counter(map(tuple, story.values())) == {tuple(expected): len(messages)}


async def _story(rig, archivers) -> dict[bytes, list[str]]:
    """The events of each message, from archive and stream."""
    story: dict[bytes, list[str]] = {}
    for one in archivers:
        for entry in await archives.whole(rig.redis, one.feed.keys, one.archive):
            assert ids.partition(entry.subject) == one.feed.keys.number
            story.setdefault(entry.subject, []).append(type(recorded(entry).event).__name__)
    return story
