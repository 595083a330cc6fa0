"""Reads of the read models."""

from __future__ import annotations

import asyncio

import pytest

from broker import clock
from broker.domain import ids
from broker.errors import StoreUnavailable
from broker.events import types
from broker.projections import lag
from broker.projections.queries import Counts, Queries
from support import histories, log
from support.readmodels import reached, runner, running
from support.waiting import wait_until


@pytest.fixture
async def queries(url):
    opened = Queries(url)
    yield opened
    await opened.close()


async def test_message_and_its_attempts(redis, log_name, store, queries):
    """A message with its times, and every attempt in order."""
    keys, identity = await log.create(redis, log_name)
    one = histories.submitted(certificate=bytes(range(32)), domain="acme.example")
    positions = await histories.append(
        redis,
        keys.partitions[0],
        [one, histories.attempted(one, ok=False, code=503, error="busy"), histories.attempted(one, 2), histories.delivered(one, 2)],
    )  # fmt: skip
    async with running(runner(redis, keys.partitions[0], identity, store)):
        assert await queries.wait_passed(positions[-1], within=20)
    message = await queries.message(one.subject)
    assert (message.message_id, message.status, message.attempt_count) == (
        ids.text(one.subject),
        "delivered",
        2,
    )
    assert (message.queued_at, message.delivered_at) == (one.at, one.at + 20)
    assert (message.encrypted_body, message.submitted) == (one.event.sealed, positions[0])
    assert message.certificate == bytes(range(32)).hex()
    assert message.correlation_id == one.correlation_id
    attempts = await queries.attempts(one.subject)
    assert [(row.attempt, row.succeeded, row.code, row.error) for row in attempts] == [
        (1, False, 503, "busy"),
        (2, True, None, None),
    ]
    assert await queries.message(ids.new(0)) is None


async def test_counts_and_latency(redis, log_name, store, queries):
    """Messages by status, of some clients or all, and how fast they were delivered."""
    keys, identity = await log.create(redis, log_name)
    stuck, bad = histories.submitted(client="acme"), histories.submitted()
    facts = [
        *histories.happy(3), stuck, histories.Fact(stuck.subject, types.MessageParked("acme", 1, 1, "why")),
        bad, histories.Fact(bad.subject, types.Failed("demo", 1, 5, "no")),
    ]  # fmt: skip
    positions = await histories.append(redis, keys.partitions[0], facts)
    async with running(runner(redis, keys.partitions[0], identity, store)):
        await wait_until(lambda: reached(store, positions[-1]))
    assert await queries.counts() == Counts(queued=1, delivered=3, failed=1, parked=1)
    assert await queries.counts(["acme"]) == Counts(queued=1, delivered=0, failed=0, parked=1)
    assert await queries.counts([]) == Counts(0, 0, 0, 0)
    assert set(await queries.latency(0)) == {"p50", "p95", "p99"}
    assert (await queries.latency(clock.now_ms() + 3_600_000))["p50"] is None


async def test_read_your_writes(redis, log_name, store, queries):
    """Waiting for an event ends when the read model has it, and is bounded."""
    keys, identity = await log.create(redis, log_name)
    positions = await histories.append(redis, keys.partitions[0], histories.happy(1))
    assert not await queries.passed(positions[-1])
    assert not await queries.wait_passed(positions[-1], within=0.02)
    waiting = asyncio.create_task(queries.wait_passed(positions[-1], within=20))
    async with running(runner(redis, keys.partitions[0], identity, store)):
        assert await waiting
    assert not await queries.passed(positions[-1]._replace(stream="1"))


async def test_lag(redis, log_name, store, queries):
    """Lag counts events behind the log's end and the age of the oldest of them."""
    keys, identity = await log.create(redis, log_name)
    positions = await histories.append(redis, keys.partitions[0], histories.happy(2))
    async with running(runner(redis, keys.partitions[0], identity, store)):
        await wait_until(lambda: reached(store, positions[-1]))
    rows = await queries.checkpoints()
    assert {row.projection for row in rows} == {"messages", "attempts", "audit_log", "statistics"}
    assert {each.events for each in await lag.measure(redis, keys.partitions[0], rows)} == {0}
    await histories.append(redis, keys.partitions[0], histories.happy(3))
    measured = await lag.measure(redis, keys.partitions[0], rows)
    assert {each.events for each in measured} == {9}
    assert all(0 <= each.seconds < 60 for each in measured)


async def test_database_away():
    """Without the database a read says so."""
    queries = Queries("mysql://u:p@127.0.0.1:1/message_system")
    with pytest.raises(StoreUnavailable):
        await queries.message(ids.new(0))
