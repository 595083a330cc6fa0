"""The delivery group destroyed or changed by hand: nothing is lost, out of reach, or delivered twice."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from broker.domain.message import Accepted, OwnSideAway
from broker.events.delivery_log import DeliveryLog
from broker.events.open_messages import FinishedMessage
from broker.services.delivery import metrics
from support.log import OUTCOMES_KEPT_MS
from support.rig import QUICK, Recorder
from support.waiting import wait_until


async def test_a_destroyed_group_delivers_nothing_again(rig):
    """XGROUP DESTROY: open messages are read again, finished ones are not delivered again."""
    channel = Recorder()
    async with rig.working(channels=[channel]):
        finished = await rig.submit(50)
        await rig.all_finished(finished)
        for partition in rig.keys.partitions:
            await rig.redis.xgroup_destroy(partition.events, "delivery")
        more = await rig.submit(50)
        await rig.all_finished(more)
        await wait_until(lambda: _read_all(rig))
    assert sorted(channel.seen) == sorted(finished + more)


async def _read_all(rig) -> bool:
    for partition in rig.keys.partitions:
        groups = await rig.redis.xinfo_groups(partition.events)
        if not groups or groups[0]["lag"] or groups[0]["pending"]:
            return False
    return True


async def test_a_group_destroyed_with_messages_in_hand(rig):
    """Attempts in hand when the group goes have one outcome in the end, and numbered attempts."""
    channel = Recorder()
    channel.gate.clear()
    async with rig.working(channels=[channel]):
        messages = await rig.submit(10)
        await wait_until(lambda: len(channel.seen) >= 10)
        for partition in rig.keys.partitions:
            await rig.redis.xgroup_destroy(partition.events, "delivery")
        channel.gate.set()
        await rig.all_finished(messages)
    for message in messages:
        assert await rig.tags(message) == ["MessageSubmitted", "DeliveryAttempted", "Delivered"]


async def test_a_group_destroyed_with_messages_in_several_hands(rig):
    """⚠ Whatever living workers have in hand when the group goes reaches its recipient once."""
    channels = [Recorder(), Recorder()]
    for channel in channels:
        channel.gate.clear()
    async with rig.working(channels=[channels[0]]), rig.working(channels=[channels[1]]):
        messages = await rig.submit(40)
        await wait_until(lambda: sum(len(channel.seen) for channel in channels) == 40)
        for partition in rig.keys.partitions:
            await rig.redis.xgroup_destroy(partition.events, "delivery")
        await wait_until(lambda: _read_again(rig))
        # Found by those who wait for news: the claims are where they were.
        more = await rig.submit(10)
        for channel in channels:
            channel.gate.set()
        await rig.all_finished(messages + more)
    assert all(channel.seen for channel in channels)
    assert sorted(channels[0].seen + channels[1].seen) == sorted(messages + more)


async def _read_again(rig) -> bool:
    for partition in rig.keys.partitions:
        groups = await rig.redis.xinfo_groups(partition.events)
        if not groups or groups[0]["lag"] or await rig.redis.exists(partition.holds):
            return False
    return True


async def test_a_group_destroyed_and_read_again_before_a_claim_is_handed_back(rig):
    """⚠ What was handed back by a claim of the lost group is handed back again: the newer claim is nobody else's."""
    answers = [OwnSideAway("maintenance"), OwnSideAway("maintenance")]
    channel = Recorder(lambda _: answers.pop() if answers else Accepted())
    limits = msgspec.structs.replace(QUICK, claim_ttl=1000.0)
    async with rig.working(channels=[channel], limits=limits) as worker:
        log = worker.lanes[0].log
        release, ensure_group = log.release, log.ensure_group
        late: list[bool] = []
        decided = asyncio.Event()

        async def made_later(in_hand=()):
            await decided.wait()
            return await ensure_group(in_hand)

        async def answered_late(*args, **options):
            if late:
                return await release(*args, **options)
            late.append(True)
            log.ensure_group = made_later
            await rig.redis.xgroup_destroy(log.partition.events, "delivery")
            judged = {entry: item.claim for entry, item in worker.lanes[0].items.items()}
            reply = await release(*args, **options)
            decided.set()
            await wait_until(
                lambda: all(item.claim is not judged[entry] for entry, item in worker.lanes[0].items.items())
            )
            return reply

        log.release = answered_late
        messages = await rig.submit(2, partition=0)
        done = await rig.all_finished(messages)
        assert late
        await wait_until(lambda: _read_all(rig))
    assert {(one.outcome, one.attempts) for one in done} == {("delivered", 1)}


@pytest.mark.parametrize("how", ["position", "consumer"])
async def test_a_group_changed_by_hand_leaves_no_message_out_of_reach(rig, how):
    """⚠ XGROUP SETID goes past what nobody has read, DELCONSUMER drops what is pending: found, and delivered once."""
    events = rig.keys.partitions[0].events
    before = metrics.unreachable()._value.get()
    messages = await rig.submit(5, partition=0)
    absent = DeliveryLog(
        rig.redis, rig.keys.partitions[0], rig.identity, "absent", outcomes_kept_ms=OUTCOMES_KEPT_MS
    )
    await absent.ensure_group()
    if how == "position":
        await rig.redis.xgroup_setid(events, "delivery", "$")
    else:
        await absent.read(10, rig.redis, block_ms=1)
        await rig.redis.xgroup_delconsumer(events, "delivery", "absent")
    channel = Recorder()
    async with rig.working(channels=[channel]):
        await rig.all_finished(messages)
    assert sorted(channel.seen) == sorted(messages)
    assert metrics.unreachable()._value.get() == before + 5


async def test_an_open_message_without_its_entry_is_told(rig):
    """An entry that somebody deleted cannot be delivered: the metric says how many there are."""
    [message] = await rig.submit(1, partition=0)
    absent = DeliveryLog(
        rig.redis, rig.keys.partitions[0], rig.identity, "absent", outcomes_kept_ms=OUTCOMES_KEPT_MS
    )
    await absent.ensure_group()
    [claim] = await absent.read(1, rig.redis, block_ms=1)
    await rig.redis.xdel(rig.keys.partitions[0].events, claim.entry)
    await rig.redis.xack(rig.keys.partitions[0].events, "delivery", claim.entry)
    async with rig.working():
        await wait_until(lambda: metrics.entries_gone("0")._value.get() == 1)
    metrics.entries_gone("0").set(0)
    assert type(await rig.state(message)) is not FinishedMessage
