"""The worker on a real log: one outcome per cycle, retries, orderly ends."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from structlog.testing import capture_logs

from broker.domain.message import Accepted, Failed, Refused
from broker.domain.retry import RetryPolicy
from broker.events import types
from broker.services.delivery.role import limits
from broker.settings import Settings
from support.rig import QUICK, Recorder
from support.waiting import wait_until


@pytest.mark.case("TC-W-001", "TC-W-003")
async def test_a_message_is_delivered_and_recorded(rig):
    """One message goes through its channel; attempt and outcome are recorded and nothing stays pending."""
    channel = Recorder()
    async with rig.working(channels=[channel]):
        [message] = await rig.submit()
        [done] = await rig.all_finished([message])
        assert (done.outcome, done.cycle, done.attempts) == ("delivered", 1, 1)
        await wait_until(lambda: _nothing_pending(rig))
    submitted, attempted, delivered = await rig.events(message)
    assert channel.deliveries[0].plain.message_body == "hello"
    assert attempted.event.succeeded
    assert attempted.event.code == 200
    assert attempted.envelope.correlation_id == submitted.envelope.correlation_id
    assert attempted.envelope.causation == str(submitted.position)
    assert attempted.envelope.actor.startswith("worker:w")
    assert isinstance(delivered.event, types.Delivered)


async def _nothing_pending(rig) -> bool:
    return await rig.pending() == 0


async def test_many_messages_have_one_outcome_each(rig):
    """Everything submitted ends once, in every partition, with no more in hand than allowed."""
    channel = Recorder()
    async with rig.working(channels=[channel]) as worker:
        messages = await rig.submit(1000)
        done = await rig.all_finished(messages)
        assert worker.capacity.free <= worker.capacity.limit
    assert {one.outcome for one in done} == {"delivered"}
    assert sorted(channel.seen) == sorted(messages)
    assert worker.capacity.free == worker.capacity.limit


@pytest.mark.case("TC-W-004", "TC-W-009")
async def test_attempts_run_out_at_the_maximum(rig):
    """A recipient that never answers is tried five times, not more, and the message then failed."""
    channel = Recorder(Failed("no answer"))
    async with rig.working(channels=[channel]):
        [message] = await rig.submit()
        [done] = await rig.all_finished([message])
    assert (done.outcome, done.attempts) == ("failed", 5)
    assert len(channel.seen) == 5 == limits(Settings()).retry.max_attempts
    events = await rig.events(message)
    attempts = [one.event for one in events if isinstance(one.event, types.DeliveryAttempted)]
    assert [one.attempt for one in attempts] == [1, 2, 3, 4, 5]
    assert [one.error for one in attempts] == ["no answer"] * 5
    assert isinstance(events[-1].event, types.Failed)
    assert sum(isinstance(one.event, types.Failed) for one in events) == 1


async def test_a_permanent_refusal_ends_the_cycle_at_once(rig):
    """A recipient that says no for good is not asked again."""
    async with rig.working(channels=[Recorder(Refused("gone", 410, permanent=True))]):
        [message] = await rig.submit()
        [done] = await rig.all_finished([message])
    assert (done.outcome, done.attempts) == ("failed", 1)
    assert (await rig.events(message))[1].event.code == 410


@pytest.mark.case("TC-W-002")
async def test_retries_are_thirty_seconds_apart_by_default(rig):
    """With the default settings a failed attempt schedules the next one 30 s later, by Redis' own clock."""
    settings = Settings()
    assert (settings.retry_schedule, settings.retry_interval, settings.retry_jitter) == ("fixed", 30.0, 0.0)
    async with rig.working(
        limits=msgspec.structs.replace(QUICK, retry=limits(settings).retry),
        channels=[Recorder(Failed("away"))],
    ):
        [message] = await rig.submit(partition=0)
        waiting = await wait_until(lambda: _due(rig, message))
    scheduled = (await rig.events(message))[-1]
    assert scheduled.event.delay_ms == 30_000
    # The due time is counted from the script's clock, which also made the event's id.
    assert waiting - scheduled.position.ms == 30_000


async def _due(rig, message):
    return await rig.redis.zscore(rig.keys.partitions[0].due, message)


@pytest.mark.case("TC-W-002")
async def test_a_failed_attempt_is_retried_after_its_interval(rig):
    """The retry comes by itself, no earlier than scheduled, and can succeed."""
    channel = Recorder(lambda delivery: Failed("away") if delivery.attempt < 3 else Accepted())
    async with rig.working(
        limits=msgspec.structs.replace(QUICK, retry=RetryPolicy(interval=0.3)), channels=[channel]
    ):
        [message] = await rig.submit()
        [done] = await rig.all_finished([message])
    assert (done.outcome, done.attempts) == ("delivered", 3)
    events = await rig.events(message)
    scheduled = [one.position.ms for one in events if isinstance(one.event, types.RetryScheduled)]
    due = [one.position.ms for one in events if isinstance(one.event, types.DeliveryDue)]
    assert len(due) == 2
    assert all(later - earlier >= 300 for earlier, later in zip(scheduled, due, strict=True))


@pytest.mark.case("TC-W-002", "TC-I-002")
async def test_a_retry_comes_after_the_default_interval(rig, request: pytest.FixtureRequest):
    """By the events' own times: after 30 s in a full run (`--full`); a tenth of a second in the short form."""
    retry = limits(Settings()).retry
    interval = 30_000 if request.config.getoption("--full") else 100
    assert retry.interval == 30
    retry = msgspec.structs.replace(retry, interval=interval / 1000)
    channel = Recorder(lambda delivery: Failed("away") if delivery.attempt == 1 else Accepted())
    async with rig.working(limits=msgspec.structs.replace(QUICK, retry=retry), channels=[channel]):
        [message] = await rig.submit()
        [done] = await rig.all_finished([message], within=120)
    assert (done.outcome, done.attempts) == ("delivered", 2)
    times = {type(one.event): one.position.ms for one in await rig.events(message)}
    assert times[types.DeliveryDue] - times[types.RetryScheduled] >= interval
    assert times[types.Delivered] >= times[types.DeliveryDue]


@pytest.mark.case("TC-W-005")
async def test_several_workers_share_the_messages(rig):
    """Three workers on one log: every message is delivered once, and all of them deliver some."""
    channels = [Recorder() for _ in range(3)]
    for channel in channels:
        channel.gate.clear()
    async with (
        rig.working(channels=[channels[0]]),
        rig.working(channels=[channels[1]]),
        rig.working(channels=[channels[2]]),
    ):
        messages = await rig.submit(300)
        await wait_until(lambda: all(channel.seen for channel in channels))
        for channel in channels:
            channel.gate.set()
        await rig.all_finished(messages)
    seen = [message for channel in channels for message in channel.seen]
    assert sorted(seen) == sorted(messages)


@pytest.mark.case("TC-W-006")
async def test_a_worker_that_stops_finishes_what_it_has_in_hand(rig):
    """On stop nothing new is claimed, attempts under way are finished and recorded, and no claim stays behind."""
    channel = Recorder()
    channel.gate.clear()
    worker = rig.worker(channels=[channel])
    stop = asyncio.Event()
    task = asyncio.create_task(worker.run(stop))
    [message] = await rig.submit()
    await wait_until(lambda: channel.seen)
    stop.set()
    await asyncio.sleep(0)
    assert not task.done()
    channel.gate.set()
    await task
    [done] = await rig.finished([message])
    assert done.outcome == "delivered"
    assert await rig.pending() == 0
    assert channel.seen == [message]


@pytest.mark.case("TC-W-006")
async def test_what_is_not_finished_in_time_is_handed_back(rig):
    """Past the grace period claims go back, no attempt recorded, and another worker takes them at once."""
    slow, quick = Recorder(), Recorder()
    slow.gate.clear()
    async with rig.working(channels=[slow], limits=msgspec.structs.replace(QUICK, grace=0.5)) as worker:
        messages = await rig.submit(4)
        await wait_until(lambda: len(slow.seen) == 4)
    assert worker.in_hand == 0
    assert worker.capacity.free == worker.capacity.limit
    async with rig.working(channels=[quick]):
        await rig.all_finished(messages)
    for message in messages:
        assert await rig.tags(message) == ["MessageSubmitted", "DeliveryAttempted", "Delivered"]
    assert sorted(quick.seen) == sorted(messages)


async def test_one_place_serves_every_partition(rig):
    """⚠ With `--concurrency 1` partitions with nothing to read do not keep the place from those that have."""
    channel = Recorder()
    limits = msgspec.structs.replace(QUICK, concurrency=1)
    async with rig.working(channels=[channel], limits=limits) as worker:
        messages = await rig.submit(300, partition=0)
        await rig.all_finished(messages, within=60)
        assert worker.capacity.limit == 1
    assert sorted(channel.seen) == sorted(messages)


@pytest.mark.case("TC-W-010")
async def test_an_empty_queue_is_no_error(rig):
    """With nothing to do the worker waits, no error in its log, and takes each message when it comes."""
    with capture_logs() as logs:
        async with rig.working() as worker:
            await wait_until(lambda: all(lane.steady_since is not None for lane in worker.lanes))
            for _ in range(3):
                assert worker.waits_for == {}
                assert worker.in_hand == 0
                messages = await rig.submit(2)
                await rig.all_finished(messages)
                # Empty again.
                await wait_until(lambda: _nothing_pending(rig))
            assert worker.waits_for == {}
    assert {line["event"] for line in logs} >= {"worker_started", "worker_stopped"}
    bad = {"error", "critical"}
    assert [one for one in logs if one["log_level"] in bad or one["event"] == "log_away"] == []
