"""Reading the log for people."""

from __future__ import annotations

import asyncio
import contextlib

from broker.events import browsing, codec, connection, envelope, types
from broker.events.keys import StreamKeys
from broker.events.positions import start
from support import log
from support.waiting import wait_until


async def add(redis: connection.Redis, stream: StreamKeys, attempt: int) -> None:
    event = types.Failed("demo", 1, attempt, "x")
    stored = {
        "t": codec.tag_of(event),
        "s": b"i" * 16,
        "m": envelope.encode(1, "test"),
        "d": codec.encode(event),
    }
    await redis.xadd(stream.events, stored)


def attempt(entry: codec.Stored) -> int:
    return codec.decode(entry.tag, entry.data).attempt


async def test_following_goes_on_after_an_outage(own_valkey, log_name: str) -> None:
    """While Redis is away it is said once; afterwards reading goes on where it stood, nothing missed or doubled."""
    redis = connection.connect(own_valkey.url, timeout=1)
    keys, _ = await log.create(redis, log_name)
    said: list[object] = []
    seen: list[int] = []

    async def follow() -> None:
        ends = [(stream, start(stream.stream)) for stream in keys.streams]
        async for entry in browsing.follow(redis, ends, said.append):
            seen.append(attempt(entry))  # noqa: PERF401 - it never ends

    await add(redis, keys.partitions[0], 1)
    following = asyncio.create_task(follow())
    await wait_until(lambda: seen == [1])
    await own_valkey.stop()
    await wait_until(lambda: said)
    await own_valkey.start()
    await add(redis, keys.partitions[1], 2)
    await add(redis, keys.partitions[0], 3)
    await wait_until(lambda: len(seen) >= 3)
    assert (sorted(seen), len(said)) == ([1, 2, 3], 1)
    following.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await following
    await redis.aclose()


async def test_the_latest_that_match_are_found_behind_many_that_do_not(
    redis: connection.Redis, log_name: str
) -> None:
    """Looking back goes past whole pages without a match, and no further than asked."""
    keys, _ = await log.create(redis, log_name)
    stream = keys.partitions[0]
    for number in (1, 2):
        await add(redis, stream, number)
    pipeline = redis.pipeline(transaction=False)
    for _ in range(browsing.PAGE + 10):
        await add(pipeline, stream, 9)
    await pipeline.execute()
    found = await browsing.latest(redis, stream, 5, lambda entry: attempt(entry) < 9)
    assert [attempt(entry) for entry in found] == [1, 2]
    last = await browsing.last_position(redis, stream)
    found = await browsing.latest(redis, stream, 5, lambda _: True, not_before_ms=last.ms + 1)
    assert found == []
