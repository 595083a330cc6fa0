"""The system's figures, a message's steps, and the backlog."""

from __future__ import annotations

import pytest

from broker import clock
from broker.errors import LogRefused
from broker.events import backlog, types
from broker.projections import overview, timeline
from broker.projections.statistics import HOUR_MS
from support import histories, log
from support.readmodels import reached, runner, running
from support.waiting import wait_until


async def fold(redis, keys, identity, store, facts):
    """The facts of one partition, appended and applied by every projection."""
    positions = await histories.append(redis, keys.partitions[0], facts)
    async with running(runner(redis, keys.partitions[0], identity, store)):
        await wait_until(lambda: reached(store, positions[-1]))
    return positions


async def test_figures(redis, log_name, store):
    """Messages, outcomes, clients and delivery times of a period; what is older is left out."""
    keys, identity = await log.create(redis, log_name)
    bad, gone = histories.submitted(client="acme"), histories.submitted()
    await fold(
        redis, keys, identity, store,
        [*histories.happy(4), bad, histories.Fact(bad.subject, types.Failed("acme", 1, 5, "no")),
         gone, histories.Fact(gone.subject, types.MessageDiscarded("demo", 1, 0, "a test"))],
    )  # fmt: skip
    await store.execute(
        "INSERT INTO clients (client_id,status,registered_at,changed_ms,changed_seq) VALUES "
        "('demo','active','2026-01-01',1,0),('acme','active','2026-01-01',1,0),"
        "('idle','active','2026-01-01',1,0),('left','erased','2026-01-01',1,0)"
    )
    now = clock.now_ms()
    for age, submitted in ((3, 10), (30, 100), (24 * 8, 1000)):
        await store.execute(
            "INSERT INTO statistics (stream,hour,client_id,submitted,delivered) "
            f"VALUES ('1',{overview.sql.hour(now - age * HOUR_MS)},'idle',{submitted},{submitted})"
        )
    found = {period: await overview.figures(store, period, now) for period in overview.HOURS}
    assert {name: each.total_messages for name, each in found.items()} == {
        "hour": 6,
        "day": 16,
        "week": 116,
        "month": 1116,
    }
    hour = found["hour"]
    assert (hour.delivered, hour.failed) == (4, 2)
    assert (hour.total_clients, hour.active_clients, found["day"].active_clients) == (3, 2, 3)
    assert {each.messages_last_24h for each in found.values()} == {16}
    assert hour.delivery.p50 is not None
    assert hour.delivery.p50 <= hour.delivery.p95 <= hour.delivery.p99
    assert hour.since == (now - HOUR_MS) // HOUR_MS * HOUR_MS


async def test_nothing_yet(store):
    """An empty system has figures too."""
    found = await overview.figures(store, "month")
    assert (found.total_messages, found.active_clients, found.delivery.p99) == (0, 0, None)


async def test_figures_use_an_index(store):
    """The figures read the hours of their period alone."""
    now = clock.now_ms()
    values = ",".join(
        f"('{n % 4}',{overview.sql.hour(now - n * HOUR_MS)},'demo',1)" for n in range(2000)
    )  # fmt: skip
    await store.execute(f"INSERT INTO statistics (stream,hour,client_id,submitted) VALUES {values}")
    values = ",".join(f"('{n % 4}',{overview.sql.hour(now - n * HOUR_MS)},3,1)" for n in range(2000))
    await store.execute(f"INSERT INTO latencies (stream,hour,bucket,messages) VALUES {values}")
    for query in (overview.counts_query(now - HOUR_MS), overview.latency_query(now - HOUR_MS)):
        (plan,) = await store.select(f"EXPLAIN {query}")
        assert (plan["key"], plan["type"]) == ("hour", "range")


async def test_lags(redis, log_name, store):
    """Every projection of every stream that feeds it, with how far it is behind."""
    keys, identity = await log.create(redis, log_name)
    await fold(redis, keys, identity, store, histories.happy(2))
    await histories.append(redis, keys.partitions[0], histories.happy(1))
    found = await overview.lags(store, redis, keys)
    assert {(each.projection, each.stream, each.events) for each in found} == {
        (name, "0", 3) for name in ("messages", "attempts", "audit_log", "statistics")
    }


async def test_backlog(redis, log_name):
    """Open messages of all partitions, and retries that are late by Redis' clock."""
    keys, identity = await log.create(redis, log_name)
    first, second = keys.partitions
    now = clock.now_ms()
    await redis.hset(first.open, mapping={b"a" * 16: b"x", b"b" * 16: b"x"})
    await redis.hset(second.open, b"c" * 16, b"x")
    await redis.zadd(first.due, {b"a" * 16: now - 60_000, b"b" * 16: now + 60_000})
    await redis.zadd(second.due, {b"c" * 16: now - 1})
    assert await backlog.measure(redis, keys, identity) == backlog.Backlog(open=3, overdue=1)
    await redis.hset(first.meta, "incarnation", "another")
    with pytest.raises(LogRefused):
        await backlog.measure(redis, keys, identity)


async def test_timeline(redis, log_name, store):
    """A message's way: submitted with which certificate, tried, retried, failed, resent by whom, delivered."""
    keys, identity = await log.create(redis, log_name)
    one = histories.submitted(certificate=bytes(range(32)), domain="acme.example")
    client = one.event.client_id
    resent = types.ResendRequested(client, 2, b"sealed", "the recipient asked")
    positions = await fold(
        redis, keys, identity, store,
        [one,
         histories.attempted(one, ok=False, code=503, error="busy"),
         histories.Fact(one.subject, types.RetryScheduled(client, 1, 1, 30_000)),
         histories.Fact(one.subject, types.DeliveryDue(client, 1, 2)),
         histories.attempted(one, 2, ok=False, code=410, error="gone"),
         histories.Fact(one.subject, types.Failed(client, 1, 2, "refused")),
         histories.Fact(one.subject, resent, actor="user:u1", causation="0:1-0"),
         histories.attempted(one, 1, cycle=2),
         histories.delivered(one, 1, cycle=2)],
    )  # fmt: skip
    steps = await timeline.of_message(store, one.subject)
    assert [(step.event, step.cycle, step.attempt) for step in steps] == [
        ("MessageSubmitted", 1, None),
        ("DeliveryAttempted", 1, 1),
        ("RetryScheduled", 1, 1),
        ("DeliveryDue", 1, 2),
        ("DeliveryAttempted", 1, 2),
        ("Failed", 1, 2),
        ("ResendRequested", 2, None),
        ("DeliveryAttempted", 2, 1),
        ("Delivered", 2, 1),
    ]
    assert [step.position for step in steps] == [str(position) for position in positions]
    first, tried, retry, *_ = steps
    assert (first.actor, first.certificate, first.domain) == (
        f"client:{client}",
        bytes(range(32)).hex(),
        "acme.example",
    )
    assert (tried.code, tried.error, tried.latency_ms, tried.succeeded) == (503, "busy", 12, False)
    assert retry.next_attempt_at == positions[2].ms + 30_000
    assert (steps[6].actor, steps[6].reason, steps[6].causation_id) == (
        "user:u1",
        "the recipient asked",
        "0:1-0",
    )
    assert await timeline.of_message(store, histories.submitted().subject) == []


def test_unreadable_step():
    """An event of a newer version is a step all the same."""
    fact = histories.submitted()
    fields = fact.fields() | {b"t": b"MessagePainted", b"d": b"\x90"}
    found = timeline.step(histories.codec.stored(histories.Position("0", 5, 0), fields))
    assert (found.event, found.actor, found.cycle) == ("MessagePainted", "client:demo", None)
