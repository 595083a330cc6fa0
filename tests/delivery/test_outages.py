"""Redis away, replies lost, groups destroyed, our own side away: nothing is lost, doubled or failed."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
import structlog.testing

from broker import clock, lifecycle
from broker.domain.message import Accepted, OwnSideAway
from broker.events import connection, envelope, types
from broker.events.claims import Settlement
from broker.events.delivery_log import DeliveryLog
from broker.events.open_messages import FinishedMessage
from broker.services.delivery import metrics
from broker.services.delivery.patience import CEILING
from support.log import OUTCOMES_KEPT_MS
from support.proxy import proxy_to_unix
from support.rig import QUICK, Recorder, Rig
from support.waiting import wait_until


@pytest.fixture
async def own_rig(own_valkey, tmp_path, log_name):
    """A rig on a Valkey of its own."""
    redis = connection.connect(own_valkey.url, timeout=1.0)
    made = await Rig(own_valkey.url, redis, tmp_path / "rig", log_name).create()
    yield made
    await made.aclose()
    await redis.aclose()


@pytest.mark.case("TC-W-007")
@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_redis_away_with_messages_in_hand(own_rig, own_valkey, how):
    """Attempts finished while Redis is away are recorded once it is back: once each, and the recipient sees one."""
    channel = Recorder()
    channel.gate.clear()
    with structlog.testing.capture_logs() as logged:
        async with own_rig.working(channels=[channel]) as worker:
            messages = await own_rig.submit(20)
            await wait_until(lambda: len(channel.seen) == 20)
            over = await _all_over(own_rig)
            await (own_valkey.stop() if how == "stop" else own_valkey.kill())
            channel.gate.set()
            await wait_until(lambda: "log" in worker.waits_for)
            await wait_until(lambda: clock.now_ms() > over)
            await own_valkey.start()
            done = await own_rig.all_finished(messages)
            await wait_until(lambda: worker.waits_for == {})
            more = await own_rig.submit(5)
            await own_rig.all_finished(more)
    assert {one.outcome for one in done} == {"delivered"}
    assert sorted(channel.seen) == sorted(messages + more)
    for message in messages:
        assert await own_rig.tags(message) == ["MessageSubmitted", "DeliveryAttempted", "Delivered"]
    said = [entry["event"] for entry in logged if entry["event"] in {"log_away", "log_back"}]
    assert said == ["log_away", "log_back"]


async def _all_over(rig) -> int:
    """When (ms) the workers' heartbeats will have expired, and their claims be idle for as long as that matters."""
    beats = [value for one in rig.keys.partitions for value in await rig.redis.hvals(one.workers)]
    return max(int(beat.split(b"|")[0]) for beat in beats) + round(QUICK.claim_ttl * 1000)


async def test_an_outage_counts_as_nobodys_crash(own_rig, own_valkey):
    """⚠ After an outage every heartbeat has expired; living workers keep their claims and no message is suspected."""
    channels = [Recorder(), Recorder()]
    for channel in channels:
        channel.gate.clear()
    async with (
        own_rig.working(channels=[channels[0]]) as one,
        own_rig.working(channels=[channels[1]]) as other,
    ):
        looked = _count_takeovers(one, other)
        messages = await own_rig.submit(20)
        await wait_until(lambda: sum(len(channel.seen) for channel in channels) == 20)
        for _ in range(2):
            over = await _all_over(own_rig)
            await own_valkey.stop()
            await wait_until(lambda over=over: clock.now_ms() > over)
            await own_valkey.start()
            looked.clear()
            # Each has looked for claims of the dead again, in every partition.
            await wait_until(lambda: len(looked) == 4 and min(looked.values()) > 1)
        states = [await own_rig.state(message) for message in messages]
        assert {state.crashes for state in states} == {0}
        for channel in channels:
            channel.gate.set()
        await own_rig.all_finished(messages)
    assert sorted(channels[0].seen + channels[1].seen) == sorted(messages)


def _count_takeovers(*workers) -> Counter:
    """Counts, by worker and partition, takeovers that were answered and looked at the dead too."""
    looked: Counter = Counter()

    def counting(worker, log, take_over):
        async def counted(*args, **options):
            claims = await take_over(*args, **options)
            looked[worker.worker_id, log.partition.number] += options["abandoned"]
            return claims

        return counted

    for worker in workers:
        for lane in worker.lanes:
            lane.log.take_over = counting(worker, lane.log, lane.log.take_over)
    return looked


async def test_waiting_for_redis_costs_little(own_rig, own_valkey, monkeypatch):
    """While Redis is away every loop waits longer each time, up to a second or two."""
    waits: list[float] = []
    pause = lifecycle.sleep_or_stop

    async def noted(seconds, stop):
        if stop is worker.patience._back:
            waits.append(seconds)
        return await pause(seconds, stop)

    monkeypatch.setattr("broker.services.delivery.patience.lifecycle.sleep_or_stop", noted)
    async with own_rig.working() as worker:
        await wait_until(lambda: all(lane.steady_since is not None for lane in worker.lanes))
        await own_valkey.stop()
        # Two partitions with up to five loops each, all of them at the ceiling.
        loops = 10
        await wait_until(lambda: sum(one >= CEILING / 2 for one in waits) > 2 * loops)
        # From 50 ms on each doubles: six shorter waits are enough to get there.
        assert sum(one < CEILING / 2 for one in waits) <= 6 * loops
        assert max(waits) <= CEILING
        await own_valkey.start()
        messages = await own_rig.submit(2)
        await own_rig.all_finished(messages)


@pytest.fixture
async def proxied(valkey, redis, tmp_path, log_name):
    """A rig whose workers reach Valkey through a proxy."""
    async with proxy_to_unix(str(valkey.socket)) as proxy:
        made = await Rig(valkey.url, redis, tmp_path, log_name).create()
        made.proxy = proxy
        made.proxied = connection.connect(f"redis://127.0.0.1:{proxy.port}", timeout=1.0)
        made.proxied_url = f"redis://127.0.0.1:{proxy.port}"
        yield made
        await made.proxied.aclose()
        await made.aclose()


async def test_lost_replies_write_nothing_twice(proxied):
    """Replies are dropped all the time, to reads, admissions and settlements alike: one outcome each."""
    rig = proxied
    channel = Recorder()
    limits = msgspec.structs.replace(QUICK, claim_ttl=1.0)
    async with rig.working(
        channels=[channel], redis=rig.proxied, url=rig.proxied_url, redis_timeout=1.0, limits=limits
    ):
        rig.proxy.mode = "drop-reply"
        messages = []
        for _ in range(15):
            rig.proxy.drops = 2
            messages += await rig.submit(20)
            await wait_until(lambda: rig.proxy.drops == 0)
        rig.proxy.mode = "pass"
        done = await rig.all_finished(messages)
    assert rig.proxy.dropped == 30
    assert {(one.outcome, one.attempts) for one in done} == {("delivered", 1)}
    for message in messages:
        assert await rig.tags(message) == ["MessageSubmitted", "DeliveryAttempted", "Delivered"]


async def test_claims_whose_reply_was_lost_are_found_again_by_a_lone_worker(proxied):
    """A read that claimed but whose reply never came leaves nothing stuck, even with one worker only."""
    rig = proxied
    limits = msgspec.structs.replace(QUICK, claim_ttl=0.8)
    async with rig.working(
        redis=rig.proxied, url=rig.proxied_url, redis_timeout=1.0, limits=limits
    ) as worker:
        await wait_until(lambda: all(lane.steady_since is not None for lane in worker.lanes))
        for lane in worker.lanes:
            # What a lost reply leaves behind: entries pending for this consumer that it never heard of.
            log = lane.log.partition
            await rig.appender.append([rig.draft(log.number)])
            await rig.redis.xreadgroup("delivery", worker.worker_id, {log.events: ">"}, count=5)
        await wait_until(lambda: _none_open(rig))


async def _none_open(rig) -> bool:
    return not any([await rig.redis.hlen(partition.open) for partition in rig.keys.partitions])


async def test_a_cut_network_heals(proxied):
    """Connections closed and refused for a while: the worker comes back by itself."""
    rig = proxied
    async with rig.working(redis=rig.proxied, url=rig.proxied_url, redis_timeout=1.0) as worker:
        first = await rig.submit(10)
        await rig.all_finished(first)
        rig.proxy.mode = "cut"
        rig.proxy.cut()
        await wait_until(lambda: "log" in worker.waits_for)
        second = await rig.submit(10)
        rig.proxy.mode = "pass"
        await rig.all_finished(second)


async def test_our_own_side_away_fails_no_message(rig):
    """⚠ Two minutes of maintenance on our side consume no attempt: messages wait and are then delivered at once."""
    away = True
    channel = Recorder(lambda _: OwnSideAway("maintenance") if away else Accepted())
    async with rig.working(channels=[channel]) as worker:
        messages = await rig.submit(40)
        await wait_until(lambda: "channel:simulated" in worker.waits_for)
        assert metrics.breaker_open("simulated")._value.get() == 1
        # More back-offs than a cycle has attempts.
        await wait_until(lambda: len(channel.seen) > 40 or len(set(channel.seen)) < len(channel.seen) - 3)
        assert {type(await rig.state(message)) for message in messages} != {FinishedMessage}
        away = False
        done = await rig.all_finished(messages)
        await wait_until(lambda: worker.waits_for == {})
    assert {(one.outcome, one.attempts) for one in done} == {("delivered", 1)}
    for message in messages:
        assert await rig.tags(message) == ["MessageSubmitted", "DeliveryAttempted", "Delivered"]
    assert metrics.breaker_open("simulated")._value.get() == 0


async def test_held_messages_are_handed_back_on_stop(rig):
    """A worker that waits for our own side stops at once and leaves its messages to others, uncounted."""
    async with rig.working(channels=[Recorder(OwnSideAway("maintenance"))]) as worker:
        messages = await rig.submit(10)
        await wait_until(lambda: "channel:simulated" in worker.waits_for)
    async with rig.working():
        done = await rig.all_finished(messages)
    assert {(one.outcome, one.attempts) for one in done} == {("delivered", 1)}


async def test_a_direct_outcome_while_in_hand_is_the_only_one(rig):
    """A direct call ends the cycle while a worker has the message: the worker's answer writes nothing."""
    channel = Recorder()
    channel.gate.clear()
    before = metrics.lost_claims()._value.get()
    async with rig.working(channels=[channel]):
        [message] = await rig.submit(partition=0)
        await wait_until(lambda: channel.seen)
        direct = Settlement(
            kind="done", message_id=message, client_id="demo", cycle=1, attempt=0, outcome="failed",
            envelope=envelope.encode(clock.now_ms(), "internal:x"), event=types.Failed("demo", 1, 0, "told so"),
            at_ms=1,
        )  # fmt: skip
        log = DeliveryLog(
            rig.redis, rig.keys.partitions[0], rig.identity, "direct", outcomes_kept_ms=OUTCOMES_KEPT_MS
        )
        assert await log.settle([direct]) != [None]
        channel.gate.set()
        await wait_until(lambda: metrics.lost_claims()._value.get() == before + 1)
    [done] = await rig.finished([message])
    assert done.outcome == "failed"
    assert await rig.tags(message) == ["MessageSubmitted", "Failed"]
    assert await rig.pending() == 0


async def test_a_claim_found_lost_is_given_up(rig):
    """A claim that another took is noticed at the next renewal: its attempt is cancelled and writes nothing."""
    slow = Recorder()
    slow.gate.clear()
    before = metrics.lost_claims()._value.get()
    async with rig.working(channels=[slow]) as worker:
        [message] = await rig.submit(partition=0)
        await wait_until(lambda: slow.seen)
        events = rig.keys.partitions[0].events
        [pending] = await rig.redis.xpending_range(events, "delivery", "-", "+", 1)
        await rig.redis.xclaim(events, "delivery", "thief", 0, [pending["message_id"]], justid=True)
        await wait_until(lambda: metrics.lost_claims()._value.get() > before)
        assert worker.in_hand == 0
        assert slow.deliveries[0].cancelled
        slow.gate.set()
    assert await rig.tags(message) == ["MessageSubmitted"]


async def test_an_emptied_redis_is_refused(rig):
    """Another incarnation: the worker writes nothing, says what is wrong and goes on when it is the right one again."""
    meta = rig.keys.partitions[0].meta
    right = rig.identity.incarnations["0"]
    async with rig.working() as worker:
        await rig.all_finished(await rig.submit(2))
        await rig.redis.hset(meta, "incarnation", "other")
        await wait_until(lambda: "incarnation is other" in worker.waits_for.get("log", ""))
        await rig.redis.hset(meta, "incarnation", right)
        await rig.all_finished(await rig.submit(2))
