"""The start-up check of a Redis, and how full it is."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from broker.embedded.valkey import Valkey
from broker.errors import LogFull, LogUnavailable, UnsafeRedis
from broker.events import connection, durability
from broker.events.durability import Fullness, Marks, Sample
from broker.settings import Settings
from support.waiting import wait_until


@pytest.fixture
async def started(tmp_path: Path):
    """Starts servers of this test's own; gives a client of each."""
    opened = []

    async def start(extra: dict[str, str], name: str = "server", **options):
        server = Valkey(tmp_path / name, port=0, extra=extra, **options)
        await server.start()
        client = connection.connect(server.url)
        opened.append((server, client))
        return server, client

    yield start
    for server, client in opened:
        await client.aclose()
        await server.stop()


async def test_the_embedded_server_passes(redis):
    """Nothing to change, nothing unchecked; WAITAOF is there."""
    report = await durability.check(redis, Settings())
    assert (report.problems, report.unchecked, report.waitaof) == ((), (), True)
    assert report.version >= "7.0"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("appendonly", "no"),
        ("appendfsync", "everysec"),
        ("appendfsync", "no"),
        ("no-appendfsync-on-rewrite", "yes"),
        ("maxmemory-policy", "allkeys-lru"),
        ("maxmemory-policy", "volatile-ttl"),
    ],
)
async def test_each_unsafe_setting_is_named_with_what_to_change(started, name, value):
    """The error holds the setting, its value and the command; allowed, it is a warning instead."""
    _, redis = await started({name: value})
    wanted = durability.REQUIRED[name]
    with pytest.raises(UnsafeRedis, match=f"{name} is '{value}'.*CONFIG SET {name} {wanted}"):
        await durability.check(redis, Settings())
    with structlog.testing.capture_logs() as logs:
        report = await durability.check(redis, Settings(allow_unsafe_redis=True))
    assert len(report.problems) == 1
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["unsafe_redis_allowed"]
    await redis.config_set(name, wanted)
    assert (await durability.check(redis, Settings())).problems == ()
    # A server that is writing its first append-only file does not stop when asked.
    await wait_until(lambda: _settled(redis))


async def _settled(redis) -> bool:
    found = await redis.info("persistence")
    return not (found["aof_rewrite_in_progress"] or found["aof_rewrite_scheduled"])


async def test_all_problems_are_named_at_once(started):
    """Nobody has to start three times."""
    _, redis = await started({"appendonly": "no", "appendfsync": "no", "maxmemory-policy": "allkeys-lfu"})
    with pytest.raises(UnsafeRedis) as caught:
        await durability.check(redis, Settings())
    assert all(name in str(caught.value) for name in ("appendonly", "appendfsync", "maxmemory-policy"))


async def test_without_config_info_is_read_and_the_rest_is_said(started):
    """CONFIG forbidden: AOF and policy come from INFO, the others are named as unchecked."""
    _, redis = await started({})
    await redis.execute_command("ACL", "SETUSER", "default", "-config")
    report = await durability.check(redis, Settings())
    assert report.problems == ()
    assert set(report.unchecked) == {"appendfsync", "no-appendfsync-on-rewrite"}
    await redis.execute_command("ACL", "SETUSER", "default", "+config")
    await redis.config_set("appendonly", "no")
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    await redis.execute_command("ACL", "SETUSER", "default", "-config")
    with pytest.raises(UnsafeRedis, match=r"appendonly is 'no'.*maxmemory-policy is 'allkeys-lru'"):
        await durability.check(redis, Settings())


async def test_a_replica_is_refused_even_where_unsafe_is_allowed(started):
    """The error names the primary."""
    primary, _ = await started({}, "primary")
    _, redis = await started({"replicaof": f"127.0.0.1 {primary.port}"}, "replica")
    with pytest.raises(UnsafeRedis, match=f"replica.*127.0.0.1:{primary.port}"):
        await durability.check(redis, Settings(allow_unsafe_redis=True))


@pytest.mark.parametrize(
    ("version", "accepted"),
    [("6.2.14", False), ("5.0", False), ("7.0.15", True), ("7.2.4", True), ("8.0", True)],
)
def test_versions_before_7_0_are_refused(version, accepted):
    """7.0 is the first whose scripts can carry flags."""
    found = durability._unusable({"redis_version": version, "role": "master"})
    assert (found == []) is accepted


async def test_unknown_commands_are_noticed(redis):
    """Probing does not fail on what the server lacks."""
    assert await durability.has_command(redis, "WAITAOF")
    assert not await durability.has_command(redis, "XACKDEL")


async def test_redis_away_is_unavailable(own_valkey):
    """An outage is not an unsafe server."""
    redis = connection.connect(own_valkey.url)
    await own_valkey.kill()
    with pytest.raises(LogUnavailable):
        await durability.check(redis, Settings())
    await redis.aclose()


MARKS = Marks(memory=0.9, disk_free=1000)


@given(st.lists(st.integers(0, 100), min_size=1), st.lists(st.integers(0, 2000), min_size=1))
def test_fullness_has_hysteresis(used, free):
    """Full begins at a mark and ends only 5 % below it (85 of 90, 1053 of 1000), whatever the samples."""
    why = None
    for one, disk in zip(used, free, strict=False):
        sample = Sample(used=one, limit=100, disk_free=disk)
        before, why = why, durability.reason(sample, MARKS, was_full=why is not None)
        if one >= 90 or disk < 1000:
            assert why is not None
        elif one <= 85 and disk >= 1053:
            assert why is None
        else:
            assert (why is None) == (before is None)


def test_what_cannot_be_seen_is_not_full():
    """No bound of memory and no disk of ours: never full, unless the server cannot write."""
    assert durability.reason(Sample(used=10**12), MARKS, was_full=False) is None
    assert "append-only" in durability.reason(Sample(aof_writes=False), MARKS, was_full=False)


async def test_a_full_redis_is_seen_and_room_again_too(started):
    """Filled past the mark it refuses with the reason; emptied it accepts; metrics say so."""
    _, redis = await started({}, maxmemory_mb=20)
    fullness = Fullness(redis, Settings(log_full_ratio=0.5), poll=0.02)
    stop = asyncio.Event()
    task = asyncio.create_task(fullness.run(stop))
    await wait_until(lambda: fullness.sampled_at)
    fullness.require_room()
    assert fullness.metrics()["broker_log_full"] == 0
    for number in range(11):
        await redis.set(f"big-{number}", b"x" * 1_000_000)
    await wait_until(lambda: fullness.state == "full")
    with pytest.raises(LogFull, match="memory"):
        fullness.require_room()
    assert fullness.metrics()["broker_log_full"] == 1
    assert fullness.metrics()["broker_log_memory_used_ratio"] > 0.5
    await redis.flushall()
    await wait_until(lambda: fullness.state == "ok")
    stop.set()
    await task


async def test_the_watcher_survives_an_outage_and_keeps_its_last_answer(own_valkey):
    """While Redis is away the failure shows; afterwards it looks again by itself."""
    redis = connection.connect(own_valkey.url)
    fullness = Fullness(redis, Settings(), poll=0.02)
    stop = asyncio.Event()
    task = asyncio.create_task(fullness.run(stop))
    await wait_until(lambda: fullness.sampled_at)
    await own_valkey.kill()
    await wait_until(lambda: fullness.failure)
    assert fullness.state == "ok"
    await own_valkey.start()
    await wait_until(lambda: fullness.failure is None)
    stop.set()
    await task
    await redis.aclose()


async def test_a_full_disk_is_seen(redis, tmp_path):
    """With more free space demanded than any disk has, the log is full."""
    fullness = Fullness(redis, Settings(disk_free_min_mb=2**40), tmp_path)
    await fullness.look()
    assert fullness.reason.startswith("disk")
    assert fullness.metrics()["broker_log_disk_free_bytes"] > 0
