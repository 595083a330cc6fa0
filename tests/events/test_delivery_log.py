"""The worker's side of the log: claims, their fence, retries, takeover, direct outcomes."""

from __future__ import annotations

import msgspec
import pytest

from broker import clock
from broker.domain import ids
from broker.errors import Conflict
from broker.events import envelope, types
from broker.events.appender import Appender
from broker.events.claims import Settlement
from broker.events.connection import GroupMissing
from broker.events.delivery_log import DeliveryLog
from broker.events.open_messages import FinishedMessage, OpenMessage, look_up
from broker.events.reopening import Asked, Reopening
from support import log as logs

ALIVE_MS = 60_000
ADMIN = Asked("user:admin", 1)


class Bench:
    """One partition and as many consumers as a test wants."""

    def __init__(self, redis, keys, identity) -> None:
        self.redis, self.keys, self.identity = redis, keys, identity
        self.partition = keys.partitions[0]
        self.appender = Appender(redis, keys, identity)
        self.reopening = Reopening(redis, keys, identity, outcomes_kept_ms=logs.OUTCOMES_KEPT_MS)

    async def worker(self, name: str, *, outcomes_kept_ms: int = logs.OUTCOMES_KEPT_MS) -> DeliveryLog:
        log = DeliveryLog(self.redis, self.partition, self.identity, name, outcomes_kept_ms=outcomes_kept_ms)
        await log.ensure_group()
        await log.renew([], ALIVE_MS)
        return log

    async def submit(self, count: int = 1) -> list[bytes]:
        drafts = [logs.draft() for _ in range(count)]
        await self.appender.append(drafts)
        return [one.message_id for one in drafts]

    async def submit_beside(self, other: bytes, nth: int = 1) -> bytes:
        """Another message of the same minute, whose outcome will lie in the same place."""
        message_id = other[:12] + bytes([other[12] ^ nth]) + other[13:]
        await self.appender.append([msgspec.structs.replace(logs.draft(), message_id=message_id)])
        return message_id

    async def park_beside(self, other: bytes, log: DeliveryLog, nth: int = 1) -> bytes:
        """As `submit_beside`; the message is parked."""
        message_id = await self.submit_beside(other, nth)
        [task] = await self.tasks(log)
        await log.settle([settlement(task, "park")])
        return message_id

    async def left(self, message_id: bytes) -> int:
        """For how long (ms) the place of the message's outcome is kept from now."""
        return await self.redis.pttl(self.partition.done(ids.created_ms(message_id)))

    async def tasks(self, log: DeliveryLog, count: int = 100):
        return await log.admit(await log.read(count, self.redis, block_ms=1))

    async def die(self, log: DeliveryLog) -> None:
        """Let the heartbeat of a worker expire."""
        await self.redis.hset(self.partition.workers, log.consumer, clock.now_ms() - 1)

    async def state(self, message_id: bytes):
        return (await look_up(self.redis, self.keys, [message_id]))[0]

    async def tags(self, message_id: bytes) -> list[str]:
        return await logs.tags(self.redis, self.partition, message_id)


def settlement(task, kind: str, *, delay_ms: int = 30_000) -> Settlement:
    """What a worker writes for `task`."""
    opened = task.open
    meta = envelope.splice(clock.now_ms(), "worker:t", opened.correlation, str(task.claim.position))
    common = {
        "message_id": opened.message_id,
        "client_id": opened.client_id,
        "cycle": opened.cycle,
        "attempt": task.attempt,
        "envelope": meta,
        "claim": task.claim,
        "at_ms": clock.now_ms(),
    }
    where = (opened.client_id, opened.cycle, task.attempt)
    attempted = types.DeliveryAttempted(*where, "simulated", kind == "done", 3)
    if kind == "done":
        return Settlement(
            kind="done", outcome="delivered", attempted=attempted, event=types.Delivered(*where), **common
        )
    if kind == "retry":
        event = types.RetryScheduled(*where, delay_ms)
        return Settlement(kind="retry", attempted=attempted, event=event, delay_ms=delay_ms, **common)
    if kind == "park":
        return Settlement(kind="park", event=types.MessageParked(*where, "test"), **common)
    return Settlement(kind="drop", **common)


@pytest.fixture
async def bench(redis, log_name) -> Bench:
    return Bench(redis, *await logs.create(redis, log_name))


async def test_an_outcome_is_kept_for_as_long_as_is_set(bench):
    """And then Redis has forgotten it by itself: nothing grows with the number of messages."""
    one = await bench.worker("a", outcomes_kept_ms=90_000)
    [message] = await bench.submit()
    [task] = await bench.tasks(one)
    await one.settle([settlement(task, "done")])
    [left] = [
        await bench.redis.pttl(key) async for key in bench.redis.scan_iter(f"{bench.partition.base}:done:*")
    ]
    assert 0 < left <= 90_000
    await bench.redis.pexpire(bench.partition.done(ids.created_ms(message)), 0)
    assert await bench.state(message) is None


async def test_a_discard_keeps_outcomes_for_as_long_as_is_set(bench):
    """⚠ Its own, and with it others' of the same minute, which lie in one place."""
    kept = 10 * 86_400_000
    one = await bench.worker("a", outcomes_kept_ms=kept)
    by_hand = Reopening(bench.redis, bench.keys, bench.identity, outcomes_kept_ms=kept)
    [first] = await bench.submit()
    [task] = await bench.tasks(one)
    await one.settle([settlement(task, "park")])
    await by_hand.discard(first, 1, "asked to", ADMIN)
    assert kept - 600_000 < await bench.left(first) <= kept
    delivered = await bench.submit_beside(first)
    [task] = await bench.tasks(one)
    await one.settle([settlement(task, "done")])
    await by_hand.discard(await bench.park_beside(first, one, 2), 1, "asked to", ADMIN)
    assert [(await bench.state(each)).outcome for each in (first, delivered)] == ["discarded", "delivered"]
    assert kept - 600_000 < await bench.left(first) <= kept


@pytest.mark.parametrize("end", ["settle", "discard"])
async def test_a_process_with_a_shorter_setting_cuts_no_life(bench, end):
    """⚠ What one process promised holds while others are started with another setting, and the other way round."""
    kept, shorter = 86_400_000, 60_000
    one, other = (
        await bench.worker("a", outcomes_kept_ms=kept),
        await bench.worker("b", outcomes_kept_ms=shorter),
    )
    [delivered] = await bench.submit()
    [task] = await bench.tasks(one)
    await one.settle([settlement(task, "done")])
    if end == "discard":
        beside = await bench.park_beside(delivered, other)
        by_hand = Reopening(bench.redis, bench.keys, bench.identity, outcomes_kept_ms=shorter)
        await by_hand.discard(beside, 1, "asked to", ADMIN)
    else:
        beside = await bench.submit_beside(delivered)
        [task] = await bench.tasks(other)
        await other.settle([settlement(task, "done")])
    assert isinstance(await bench.state(beside), FinishedMessage)
    assert kept - 600_000 < await bench.left(delivered) <= kept
    await bench.redis.pexpire(bench.partition.done(ids.created_ms(delivered)), 1000)
    await bench.submit_beside(delivered, 2)
    [task] = await bench.tasks(one)
    await one.settle([settlement(task, "done")])
    assert await bench.left(delivered) > kept - 600_000


async def test_a_claim_settled_once_ends_the_cycle(bench):
    """An attempt and its outcome are appended together, the claim acknowledged and the open record gone."""
    one = await bench.worker("a")
    [message] = await bench.submit()
    [task] = await bench.tasks(one)
    assert task.sealed == b"sealed"
    [position] = await one.settle([settlement(task, "done")])
    assert position is not None
    assert await bench.tags(message) == ["MessageSubmitted", "DeliveryAttempted", "Delivered"]
    state = await bench.state(message)
    assert isinstance(state, FinishedMessage)
    assert (state.outcome, state.cycle, state.attempts) == ("delivered", 1, 1)
    assert not await bench.redis.xpending_range(bench.partition.events, "delivery", "-", "+", 10)


async def test_settling_again_writes_nothing(bench):
    """A lost reply to settle is repeated safely: the fence finds the claim gone."""
    one = await bench.worker("a")
    [message] = await bench.submit()
    [task] = await bench.tasks(one)
    await one.settle([settlement(task, "done")])
    assert await one.settle([settlement(task, "done")]) == [None]
    assert (await bench.tags(message)).count("Delivered") == 1


async def test_a_worker_that_lost_its_claim_records_nothing(bench):
    """Neither attempt nor outcome comes from a worker whose claim was taken over."""
    slow, quick = await bench.worker("slow"), await bench.worker("quick")
    [message] = await bench.submit()
    [task] = await bench.tasks(slow)
    await bench.die(slow)
    [claim] = await quick.take_over(30_000, 10, suspect=True)
    [again] = await quick.admit([claim])
    assert await slow.settle([settlement(task, "done")]) == [None]
    assert await bench.tags(message) == ["MessageSubmitted"]
    assert await quick.settle([settlement(again, "done")]) != [None]
    assert (await bench.tags(message)).count("DeliveryAttempted") == 1


async def test_renewing_does_not_steal_a_claim_back(bench):
    """⚠ A bare XCLAIM takes the claim back from its new owner; the fenced renewal reports it lost."""
    slow, quick = await bench.worker("slow"), await bench.worker("quick")
    await bench.submit()
    [task] = await bench.tasks(slow)
    await bench.die(slow)
    [claim] = await quick.take_over(30_000, 10, suspect=True)
    assert await slow.renew([task.claim], ALIVE_MS) == {task.claim.position.entry_id}
    assert await quick.renew([claim], ALIVE_MS) == set()


async def test_renewal_keeps_a_claim_from_being_taken(bench):
    """A long attempt is not taken over while its worker renews."""
    one, other = await bench.worker("a"), await bench.worker("b")
    await bench.submit()
    [task] = await bench.tasks(one)
    await one.renew([task.claim], ALIVE_MS)
    assert await other.take_over(30_000, 10, suspect=True) == []
    assert len(await other.take_over(0, 10, suspect=True)) == 1


async def test_a_retry_waits_in_due_and_comes_back_as_an_event(bench):
    """A retry never sits inside a claim: it waits in `due`, and the pump appends DeliveryDue when its time has come."""
    one = await bench.worker("a")
    [message] = await bench.submit()
    [task] = await bench.tasks(one)
    await one.settle([settlement(task, "retry", delay_ms=3_600_000)])
    state = await bench.state(message)
    assert isinstance(state, OpenMessage)
    assert (state.phase, state.attempts) == ("due", 1)
    appended, wait = await one.pump()
    assert appended == 0
    assert 3_590_000 < wait <= 3_600_000
    await bench.redis.zadd(bench.partition.due, {message: 0})
    assert await one.pump() == (1, None)
    assert await one.pump() == (0, None)
    [second] = await bench.tasks(one)
    assert (second.attempt, second.sealed) == (2, b"sealed")
    await one.settle([settlement(second, "done")])
    assert await bench.tags(message) == [
        "MessageSubmitted", "DeliveryAttempted", "RetryScheduled", "DeliveryDue", "DeliveryAttempted", "Delivered",
    ]  # fmt: skip


async def test_the_pumped_event_keeps_correlation_and_cause(bench):
    """DeliveryDue is written by a script, and still says which request it belongs to and what led to it."""
    one = await bench.worker("a")
    [message] = await bench.submit()
    [task] = await bench.tasks(one)
    [scheduled] = await one.settle([settlement(task, "retry")])
    await bench.redis.zadd(bench.partition.due, {message: 0})
    await one.pump()
    *_, (tag, fields) = await logs.history(bench.redis, bench.partition)
    meta = envelope.decode(fields[b"m"])
    assert tag == "DeliveryDue"
    assert meta.correlation_id == "c0ffee" + "0" * 26
    assert meta.causation == str(scheduled)


async def test_a_destroyed_group_comes_back_before_the_oldest_open_message(bench):
    """A recreated group sees every open message again and hands out none that has an outcome."""
    one = await bench.worker("a")
    finished, pending, unread = await bench.submit(3)
    [first, second] = await bench.tasks(one, 2)
    await one.settle([settlement(first, "done")])
    await bench.redis.xgroup_destroy(bench.partition.events, "delivery")
    with pytest.raises(GroupMissing):
        await one.read(10, bench.redis, block_ms=1)
    with pytest.raises(GroupMissing):
        await one.settle([settlement(second, "done")])
    assert await one.ensure_group()
    assert await one.settle([settlement(second, "done")]) == [None]
    assert [task.open.message_id for task in await bench.tasks(one)] == [pending, unread]
    assert (await bench.tags(finished)).count("Delivered") == 1


async def test_a_message_in_hand_stays_in_that_hand_when_the_group_is_lost(bench):
    """⚠ A living worker goes on with what it has in hand: nobody else is given it, and its answer counts."""
    one, two = await bench.worker("a"), await bench.worker("b")
    ended, working, unread = await bench.submit(3)
    tasks = await bench.tasks(one, 2)
    await bench.redis.xgroup_destroy(bench.partition.events, "delivery")
    with pytest.raises(GroupMissing):
        await two.ensure_group()
    with pytest.raises(GroupMissing):
        await one.renew([task.claim for task in tasks], ALIVE_MS)
    assert await one.ensure_group([task.claim for task in tasks])
    assert await one.settle([settlement(tasks[0], "done")]) != [None]
    assert [task.open.message_id for task in await bench.tasks(two)] == [unread]
    assert await one.renew([tasks[1].claim], ALIVE_MS) == set()
    assert await two.take_over(60_000, 10, suspect=True) == []
    assert await one.settle([settlement(tasks[1], "done")]) != [None]
    for message_id in (ended, working):
        assert (await bench.tags(message_id)).count("Delivered") == 1


async def test_what_the_dead_had_in_hand_when_the_group_was_lost_goes_to_others(bench):
    """A worker that said what it has and died keeps nothing from anybody; one that died before is not waited for."""
    one, two = await bench.worker("a"), await bench.worker("b")
    [message] = await bench.submit()
    [task] = await bench.tasks(one)
    await bench.redis.xgroup_destroy(bench.partition.events, "delivery")
    with pytest.raises(GroupMissing):
        await one.ensure_group([task.claim])
    await bench.die(one)
    assert await two.ensure_group()
    [again] = await bench.tasks(two)
    assert again.open.message_id == message
    assert await one.renew([task.claim], ALIVE_MS) == {task.claim.entry}
    assert await one.settle([settlement(task, "done")]) == [None]
    assert await two.settle([settlement(again, "done")]) != [None]


async def test_what_is_handed_back_while_the_group_is_lost_is_anybodys(bench):
    """A claim that was kept and handed back is given to whoever reads it again."""
    one, two = await bench.worker("a"), await bench.worker("b")
    [message] = await bench.submit()
    [task] = await bench.tasks(one)
    await bench.redis.xgroup_destroy(bench.partition.events, "delivery")
    with pytest.raises(GroupMissing):
        await two.ensure_group()
    assert await one.ensure_group([task.claim])
    assert await one.release([task.claim]) == 1
    assert [again.open.message_id for again in await bench.tasks(two)] == [message]


async def test_a_group_recreated_with_nothing_open_starts_at_the_tail(bench):
    """Without open messages there is nothing to go back to."""
    one = await bench.worker("a")
    await bench.submit()
    [task] = await bench.tasks(one)
    await one.settle([settlement(task, "done")])
    await bench.redis.xgroup_destroy(bench.partition.events, "delivery")
    await one.ensure_group()
    assert await one.read(10, bench.redis, block_ms=1) == []
    await bench.submit()
    assert len(await bench.tasks(one)) == 1


async def test_only_a_dead_owner_counts_as_a_crash(bench):
    """⚠ The entry's own delivery count rises on hand-backs and stalls too; those park nothing."""
    one, two = await bench.worker("a"), await bench.worker("b")
    await bench.submit()
    [task] = await bench.tasks(one)
    for _ in range(5):
        await one.release([task.claim])
        [claim] = await two.take_over(30_000, 10, suspect=False)
        assert claim.crashes == 0
        await two.release([claim])
        [claim] = await one.take_over(30_000, 10, suspect=False)
        [task] = await one.admit([claim])
    assert claim.count > 5
    [stalled] = await two.take_over(0, 10, suspect=False)
    assert stalled.crashes == 0
    await bench.die(two)
    [claim] = await one.take_over(30_000, 10, suspect=True)
    assert claim.crashes == 1


async def test_suspects_are_given_out_one_at_a_time(bench):
    """What was in hand when a worker died comes back one by one, so that the next death has one culprit."""
    one, two = await bench.worker("a"), await bench.worker("b")
    await bench.submit(5)
    await bench.tasks(one)
    await bench.die(one)
    seen = []
    for _ in range(5):
        [claim] = await two.take_over(30_000, 10, suspect=True)
        assert claim.crashes == 1
        assert await two.take_over(30_000, 10, suspect=False) == []
        [task] = await two.admit([claim])
        await two.settle([settlement(task, "done")])
        seen.append(claim.message_id)
    assert len(set(seen)) == 5
    assert await two.take_over(30_000, 10, suspect=True) == []


async def test_dead_consumers_are_forgotten(bench):
    """Consumer names are unique per process; the ones left behind are deleted once nothing is pending for them."""
    one, two = await bench.worker("a"), await bench.worker("b")
    await bench.submit()
    await bench.tasks(one)
    await bench.die(one)
    [claim] = await two.take_over(30_000, 10, suspect=True)
    await two.take_over(30_000, 10, suspect=True)
    names = {c["name"] for c in await bench.redis.xinfo_consumers(bench.partition.events, "delivery")}
    assert names == {b"b", b"-"}
    [task] = await two.admit([claim])
    assert await two.settle([settlement(task, "done")]) != [None]


async def test_a_parked_message_moves_its_body_aside_and_can_come_back(bench):
    """Parking ends no cycle; the ciphertext leaves the stream's way, and unparking continues the cycle."""
    one = await bench.worker("a")
    [message] = await bench.submit()
    [task] = await bench.tasks(one)
    await one.settle([settlement(task, "park")])
    state = await bench.state(message)
    assert state.phase == "parked"
    assert await bench.redis.zscore(bench.partition.age, message) is None
    await bench.redis.xtrim(bench.partition.events, maxlen=0, approximate=False)
    await bench.reopening.unpark(message, "demo", 1, ADMIN)
    [task] = await bench.tasks(one)
    assert (task.attempt, task.sealed) == (1, b"sealed")
    await one.settle([settlement(task, "done")])
    with pytest.raises(Conflict, match="not parked"):
        await bench.reopening.unpark(message, "demo", 1, ADMIN)


async def test_a_resend_opens_the_next_cycle_once(bench):
    """Each resend is a cycle of its own; two at once open one."""
    one = await bench.worker("a")
    [message] = await bench.submit()
    with pytest.raises(Conflict, match="open"):
        await bench.reopening.resend(message, types.ResendRequested("demo", 2, b"sealed"), ADMIN)
    [task] = await bench.tasks(one)
    await one.settle([settlement(task, "done")])
    await bench.reopening.resend(message, types.ResendRequested("demo", 2, b"again"), ADMIN)
    [task] = await bench.tasks(one)
    assert (task.open.cycle, task.attempt, task.sealed) == (2, 1, b"again")
    await one.settle([settlement(task, "done")])
    with pytest.raises(Conflict, match="another cycle"):
        await bench.reopening.resend(message, types.ResendRequested("demo", 2, b"sealed"), ADMIN)
    assert (await bench.tags(message)).count("Delivered") == 2


async def test_a_direct_outcome_makes_the_claim_in_hand_void(bench):
    """A direct call ends the cycle under the same guard; the worker that had the message in hand writes nothing."""
    one = await bench.worker("a")
    [message] = await bench.submit()
    [task] = await bench.tasks(one)
    direct = Settlement(
        kind="done", message_id=message, client_id="demo", cycle=1, attempt=0, outcome="delivered",
        envelope=envelope.encode(clock.now_ms(), "internal"), event=types.Delivered("demo", 1, 0), at_ms=1,
    )  # fmt: skip
    assert await one.settle([direct]) != [None]
    assert await one.settle([direct]) == [None]
    assert await one.settle([settlement(task, "done")]) == [None]
    assert await bench.tags(message) == ["MessageSubmitted", "Delivered"]
    assert not await bench.redis.xpending_range(bench.partition.events, "delivery", "-", "+", 10)


async def test_other_entries_are_acknowledged_in_bulk(bench):
    """Entries that stand for no attempt leave the pending list without being handled."""
    one = await bench.worker("a")
    await bench.submit(2000)
    tasks = await bench.tasks(one, 2000)
    await one.settle([settlement(task, "done") for task in tasks])
    while claims := await one.read(3000, bench.redis, block_ms=1):
        assert await one.admit(claims) == []
    assert (await bench.redis.xpending(bench.partition.events, "delivery"))["pending"] == 0
    assert ids.partition(tasks[0].open.message_id) == 0
