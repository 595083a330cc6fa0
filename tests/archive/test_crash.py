"""Archivers that die, and disks that fill up: archive and stream together stay the whole history."""

from __future__ import annotations

import asyncio
import random
import resource
import signal

import structlog

from broker.events.archive import verification
from broker.events.archive.archiver import State
from support import archives, histories, log
from support.archiver_process import spawn
from support.examples import examples
from support.waiting import wait_until


async def test_killed_archivers(redis, valkey, log_name, tmp_path):
    """Kill -9 of two archivers that trim, at random moments, again and again: nothing lost, nothing doubled."""
    keys, _ = await log.create(redis, log_name, 2)
    for stream in keys.partitions:
        await redis.xgroup_create(stream.events, "delivery", "0", mkstream=True)
    archived = {s.stream: archives.stream_archive(tmp_path, s.stream) for s in keys.partitions}
    written = {stream.stream: [] for stream in keys.partitions}
    chance = random.Random(11)
    processes = [spawn(valkey.url, log_name, tmp_path) for _ in range(2)]

    async def more() -> None:
        for stream in keys.partitions:
            facts = histories.happy(chance.randrange(1, 60), stream.number)
            at = await histories.append(redis, stream, facts)
            written[stream.stream] += [fact.stored(p) for fact, p in zip(facts, at, strict=True)]
            # As a worker would, delivered and acknowledged.
            await redis.xgroup_setid(stream.events, "delivery", at[-1].entry_id)

    def sealed() -> int:
        return sum((a.last().number if a.last() else 0) for a in archived.values())

    try:
        for _ in range(examples(8, 14)):
            before = sealed()
            await more()
            await wait_until(lambda b=before: sealed() > b)
            await more()
            # Somewhere between reading, packing, writing, recording and cutting: so many answers of Redis later.
            for _ in range(chance.randrange(100)):
                await redis.ping()
            victim = chance.randrange(2)
            processes[victim].kill()
            processes[victim].wait()
            for stream in keys.partitions:
                found = await archives.whole(redis, stream, archived[stream.stream])
                assert found == written[stream.stream]
            processes[victim] = spawn(valkey.url, log_name, tmp_path)

        async def all_archived_and_cut() -> bool:
            lengths = [await redis.xlen(stream.events) for stream in keys.partitions]
            ends = [a.last().end == written[name][-1].position for name, a in archived.items()]
            return all(ends) and max(lengths) == 1

        await wait_until(all_archived_and_cut)
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        # One that has only just started has no handlers yet.
        assert {process.wait() for process in processes} <= {0, -signal.SIGTERM}
    for name, archive in archived.items():
        assert await archives.entries(archive) == written[name]
        found = verification.verify(archive)
        assert (found.damage, found.events) == (None, len(written[name]))


async def test_a_full_disk_is_waited_for(redis, log_name, tmp_path):
    """⚠ A disk that fills up in the middle of a segment: no part of it counts, and it goes on when there is room."""
    keys, _ = await log.create(redis, log_name)
    stream = keys.partitions[0]
    at = await histories.append(redis, stream, histories.happy(20))
    one = archives.archiver(redis, stream, tmp_path, limits=archives.SMALL)
    unbounded = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file of this process can grow further: its write breaks off in the middle.
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, unbounded[1]))
    try:
        # What pytest keeps of the log is a file, too.
        with structlog.testing.capture_logs():
            async with archives.running(one):
                await _stuck_then_freed(one, at[-1], unbounded)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unbounded)
    assert await archives.entries(one.archive) == await archives.lying(redis, stream)
    assert one.archive.tidy(one.archive.last().number) == 0


async def _stuck_then_freed(one, end, unbounded) -> None:
    await wait_until(lambda: one.status.state is State.NO_ARCHIVE)
    assert "File too large" in one.status.detail
    assert await asyncio.to_thread(one.archive.last) is None
    resource.setrlimit(resource.RLIMIT_FSIZE, unbounded)

    async def there() -> bool:
        newest = await asyncio.to_thread(one.archive.last)
        return newest is not None and newest.end == end

    await wait_until(there)
