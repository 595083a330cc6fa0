"""What the claims' scripts promise workers, beyond a single claim."""

from __future__ import annotations

import pytest

from broker import clock
from broker.domain.message import End, Park
from broker.events import codec
from broker.events.delivery_log import DeliveryLog
from broker.events.reopening import Asked
from broker.services.delivery.settlements import settlement
from support.log import OUTCOMES_KEPT_MS
from support.waiting import wait_until

ALIVE_MS = 60_000


@pytest.fixture
async def logs_of(rig):
    """Makes consumers of the first partition that have a heartbeat."""

    async def make(name: str) -> DeliveryLog:
        log = DeliveryLog(
            rig.redis, rig.keys.partitions[0], rig.identity, name, outcomes_kept_ms=OUTCOMES_KEPT_MS
        )
        await log.ensure_group()
        await log.renew([], ALIVE_MS)
        return log

    return make


async def claims_of(rig, log) -> list:
    return await log.read(100, rig.redis, block_ms=1)


async def test_without_proof_of_death_only_what_was_handed_back_is_taken(rig, logs_of):
    """⚠ A taker that was cut off itself cannot tell the dead from the silent: it takes nothing of theirs."""
    one, two = await logs_of("a"), await logs_of("b")
    await rig.submit(2, partition=0)
    first, _second = await claims_of(rig, one)
    await one.release([first])
    await rig.redis.hset(rig.keys.partitions[0].workers, "a", clock.now_ms() - 1)
    taken = await two.take_over(0, 10, suspect=True, abandoned=False)
    assert [(claim.entry, claim.crashes) for claim in taken] == [(first.entry, 0)]
    later = await two.take_over(30_000, 10, suspect=True, abandoned=True)
    assert [claim.crashes for claim in later] == [1]


async def test_a_worker_finds_its_own_forgotten_claims(rig, logs_of):
    """Claims whose reply was lost are idle, because nobody renews them: their owner may take them itself."""
    one = await logs_of("a")
    await rig.submit(1, partition=0)
    [claim] = await claims_of(rig, one)
    [again] = await one.take_over(0, 10, suspect=False)
    assert (again.entry, again.count, again.crashes) == (claim.entry, claim.count + 1, 0)


async def test_leaving_hands_back_even_what_was_never_heard_of(rig, logs_of):
    """An orderly end leaves no claim behind that would later count as a crash."""
    one, two = await logs_of("a"), await logs_of("b")
    await rig.submit(3, partition=0)
    await claims_of(rig, one)
    assert await one.release([], leaving=True) == 3
    assert [claim.crashes for claim in await two.take_over(30_000, 10, suspect=False)] == [0, 0, 0]
    names = {
        one["name"] for one in await rig.redis.xinfo_consumers(rig.keys.partitions[0].events, "delivery")
    }
    assert b"a" not in names


async def test_an_outcome_counts_the_attempts_that_were_made(rig, logs_of):
    """A cycle that ends without an attempt says so in its record, as in its event."""
    one = await logs_of("a")
    messages = await rig.submit(2, partition=0)
    discarded, failed = await one.admit(await claims_of(rig, one))
    await one.settle(
        [
            settlement(
                discarded, discarded.claim, End("discarded", attempted=False, reason="erased"), None,
                channel="", latency_ms=0, actor="worker:a",
            ),
            settlement(
                failed, failed.claim, End("failed", reason="no"), None, channel="x", latency_ms=0, actor="worker:a"
            ),
        ]
    )  # fmt: skip
    assert [one.attempts for one in await rig.finished(messages)] == [0, 1]


async def test_a_damaged_body_keeps_nobody_else_from_being_admitted(rig, logs_of):
    """One body that no version can read is one message without a ciphertext, not a failed batch."""
    one = await logs_of("a")
    messages = await rig.submit(2, partition=0)
    tasks = await one.admit(await claims_of(rig, one))
    await one.settle(
        [
            settlement(task, task.claim, Park("look"), None, channel="", latency_ms=0, actor="worker:a")
            for task in tasks
        ]
    )
    for message in messages:
        await rig.reopening.unpark(message, "demo", 1, Asked("user:x", 1))
    await rig.redis.hset(rig.keys.partitions[0].bodies, messages[0], b"Nonsense.9|\xff")
    again = {task.open.message_id: task.sealed for task in await one.admit(await claims_of(rig, one))}
    assert again[messages[0]] is None
    assert again[messages[1]] is not None


async def test_many_items_in_one_call(rig, logs_of):
    """Thousands of outcomes go out in one call, fresh, stale and repeated ones among them."""
    one = await logs_of("a")
    messages = await rig.submit(2500, partition=0)
    tasks = await one.admit(await one.read(2500, rig.redis, block_ms=1))
    items = [
        settlement(task, task.claim, End("delivered"), None, channel="x", latency_ms=1, actor="worker:a")
        for task in tasks
    ]
    written = await one.commit([*items, *items[:100]])
    assert [entry is not None for entry in written] == [True] * 2500 + [False] * 100
    assert len(await rig.finished(messages)) == 2500
    assert (await rig.redis.xpending(rig.keys.partitions[0].events, "delivery"))["pending"] == 0
    assert codec.tag_of(items[0].event) == "Delivered"


async def test_a_dead_worker_is_noticed_though_the_clock_went_back(rig, logs_of):
    """⚠ A heartbeat from before the clock went back would last for hours: it gets one more heartbeat's time."""
    one, two = await logs_of("a"), await logs_of("b")
    await rig.submit(1, partition=0)
    await claims_of(rig, one)
    workers = rig.keys.partitions[0].workers
    await rig.redis.hset(workers, "a", f"{clock.now_ms() + 3_600_000}|40")
    assert await two.take_over(30_000, 10, suspect=True) == []
    until = int((await rig.redis.hget(workers, "a")).split(b"|")[0])
    await wait_until(lambda: clock.now_ms() > until + 1)
    assert [claim.crashes for claim in await two.take_over(30_000, 10, suspect=True)] == [1]


async def test_a_shelf_is_taken_by_those_who_do_not_wait_for_the_same(rig, logs_of):
    """Claims shelved under a name are left by who asks for that, taken by others, and count as nobody's crash."""
    one, two = await logs_of("a"), await logs_of("b")
    await rig.submit(3, partition=0)
    claims = await claims_of(rig, one)
    assert await one.release(claims[:2], shelf="channel:inbox") == 2
    assert await two.take_over(0, 10, suspect=True, abandoned=False, leave=["channel:inbox"]) == []
    taken = await two.take_over(0, 10, suspect=False, abandoned=False, leave=["channel:webhook"])
    assert [(claim.entry, claim.count, claim.crashes) for claim in taken] == [
        (claim.entry, 2, 0) for claim in claims[:2]
    ]
    assert await one.renew(claims, ALIVE_MS) == {claim.entry for claim in claims[:2]}
    await two.take_over(30_000, 10, suspect=False)
    found = await rig.redis.xinfo_consumers(rig.keys.partitions[0].events, "delivery")
    assert {one["name"] for one in found} == {b"a", b"b"}


async def test_what_waits_for_nobody_does_not_hide_the_stuck(rig, logs_of):
    """However much is shelved, claims that a living worker forgot are found behind it."""
    one, two = await logs_of("a"), await logs_of("b")
    await rig.submit(20, partition=0)
    claims = await claims_of(rig, one)
    await one.release(claims[:19], shelf="channel:inbox")
    taken = await two.take_over(0, 5, suspect=False, leave=["channel:inbox"])
    assert [claim.entry for claim in taken] == [claims[19].entry]


async def test_what_workers_said_is_forgotten_with_them(rig, logs_of):
    """A destroyed group takes its consumers along; what they said of themselves does not stay for ever."""
    one = await logs_of("a")
    workers = rig.keys.partitions[0].workers
    await rig.redis.hset(workers, mapping={f"w{number}": clock.now_ms() - 1 for number in range(50)})
    await rig.redis.xreadgroup("delivery", "a", {rig.keys.partitions[0].events: ">"}, count=1)
    await one.take_over(30_000, 5, suspect=False)
    assert await rig.redis.hkeys(workers) == [b"a"]


async def test_one_entry_only_stands_for_an_attempt(rig, logs_of):
    """⚠ A group recreated far back reads an unparked message's first entry too: the same attempt is not made twice."""
    one = await logs_of("a")
    await rig.submit(1, partition=0)  # keeps the group's beginning before everything else
    [message] = await rig.submit(1, partition=0)
    _, task = await one.admit(await claims_of(rig, one))
    parked = settlement(task, task.claim, Park("look"), None, channel="", latency_ms=0, actor="worker:a")
    await one.settle([parked])
    await rig.reopening.unpark(message, "demo", 1, Asked("user:x", 1))
    await rig.redis.xgroup_destroy(rig.keys.partitions[0].events, "delivery")
    await one.ensure_group()
    tasks = [task for task in await one.admit(await claims_of(rig, one)) if task.open.message_id == message]
    assert [type(task.claim.event).__name__ for task in tasks] == ["DeliveryDue"]
