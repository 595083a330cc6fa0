"""The projector's role with its archiver: metrics, health, and projections on streams that are cut."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import asynccontextmanager
from functools import partial

import httpx
import msgspec
import pytest

from broker.events import connection
from broker.events.archive.storage import BucketStorage
from broker.events.archive.store import StreamArchive
from broker.projections import schema
from broker.projections.store import Store
from broker.services.projector import archiving
from broker.services.projector.archiving import Archiving
from broker.services.projector.role import Projector
from broker.settings import Settings
from support import archives, buckets, databases, histories, log
from support.readmodels import count, reached
from support.waiting import wait_until


@pytest.fixture
async def store(mariadb):
    """A store on a migrated database of this test's own."""
    url = databases.create(mariadb)
    await asyncio.to_thread(schema.migrate, url)
    opened = Store(url)
    opened.url = url
    yield opened
    await opened.close()
    databases.drop(url)


@asynccontextmanager
async def running(redis, keys, identity, url: str, directory, *, archive_url=None, **options):
    """A projector that archives into `directory` or a bucket, and a client of its metrics port."""
    settings = Settings(
        data_dir=directory,
        archive_url=archive_url,
        projector_metrics_port=0,
        lease_ttl=1.0,
        archive_segment_seconds=0.1,
        stream_history=0,
    )
    common = {"redis": redis, "keys": keys, "identity": identity, "store": Store(url)}
    made = partial(Archiving, settings, interval=0.05, **common, **options)
    projector = Projector(settings, archiving=made, **common)
    stop, bound = asyncio.Event(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(projector.run(stop, bound.set_result))
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{await bound}") as client:
            yield projector, client
    finally:
        stop.set()
        await task


async def value(client: httpx.AsyncClient, sample: str) -> float | None:
    """The value of one sample, named with its labels."""
    for line in (await client.get("/metrics")).text.splitlines():
        if line.startswith(f"{sample} "):
            return float(line.rpartition(" ")[2])
    return None


async def health(client: httpx.AsyncClient) -> tuple[int, str, dict[str, str]]:
    answer = await client.get("/health")
    body = msgspec.json.decode(answer.content)
    return answer.status_code, body["status"], body["checks"]


async def delivered(redis, stream, number: int, count_: int = 10):
    """Finished messages that the delivery group has seen; the last position."""
    at = await histories.append(redis, stream, histories.happy(count_, number))
    try:
        await redis.xgroup_setid(stream.events, "delivery", at[-1].entry_id)
    except Exception:  # noqa: BLE001  the first time there is none
        await redis.xgroup_create(stream.events, "delivery", at[-1].entry_id)
    return at[-1]


async def test_projected_archived_and_cut(redis, log_name, store, tmp_path):
    """Round after round leaves Redis with next to nothing, the tables and the archive with everything."""
    keys, identity = await log.create(redis, log_name)
    async with running(redis, keys, identity, store.url, tmp_path) as (_, client):
        for turn in range(1, 4):
            ends = [await delivered(redis, stream, stream.number) for stream in keys.partitions]

            async def cut() -> bool:
                return max([await redis.xlen(stream.events) for stream in keys.partitions]) == 1

            await wait_until(cut)
            for end in ends:
                assert await reached(store, end)
            assert await count(store, "audit_log") == turn * 60
        for stream in keys.partitions:
            archive = archives.stream_archive(tmp_path / "archive", stream.stream)
            archive.log_id, archive.base = log_name, f"{log_name}/{stream.stream}"
            assert len(await archives.entries(archive)) == 90
        assert await health(client) == (
            200,
            "healthy",
            dict.fromkeys(("redis", "mysql", "log", "streams", "projections", "archive", "trimming"), "ok"),
        )

        async def shown() -> bool:
            samples = {
                'broker_archive_events_total{stream="0"}': 90,
                'broker_trim_removed_total{stream="0"}': 89,
                'broker_archive_state{state="owner",stream="0"}': 1,
                'broker_archive_unsealed_events{stream="0"}': 0,
                'broker_trim_overdue_seconds{stream="0"}': 0,
                'broker_archive_position_ms{stream="0"}': ends[0].ms,
                'broker_trim_bound_ms{stream="0"}': ends[0].ms,
            }
            return [await value(client, name) for name in samples] == list(samples.values())

        await wait_until(shown)
        packed = await value(client, 'broker_archive_packed_bytes_total{stream="0"}')
        assert 0 < packed < await value(client, 'broker_archive_plain_bytes_total{stream="0"}')


async def test_a_halted_projection_holds_and_alerts(redis, log_name, store, tmp_path, monkeypatch):
    """⚠ A read model that stands still keeps what it needs; the metric names it, health is degraded and serves."""
    monkeypatch.setattr(archiving, "LATE_SECONDS", 0.0)
    keys, identity = await log.create(redis, log_name)
    stream = keys.partitions[0]
    async with running(redis, keys, identity, store.url, tmp_path) as (_, client):
        await redis.xadd(stream.events, histories.submitted().fields() | {b"t": b"Unheard"})
        await delivered(redis, stream, 0)

        async def alerts() -> list[str]:
            found = await value(client, 'broker_trim_overdue_seconds{stream="0"}')
            return [
                name
                for name in ("messages", "attempts", "audit_log", "statistics")
                if (found or 0) > 0.3
                and await value(client, f'broker_trim_held{{holder="{name}",stream="0"}}')
            ]

        [held] = await wait_until(alerts)
        assert await redis.xlen(stream.events) == 31

        async def says() -> bool:
            return f"held by {held}" in (await health(client))[2]["trimming"]

        await wait_until(says)


async def test_the_database_away_keeps_history(redis, log_name, own_mariadb, tmp_path):
    """Archiving goes on without MySQL, cutting does not; both go on when it is back."""
    url = databases.create(own_mariadb)
    await asyncio.to_thread(schema.migrate, url)
    keys, identity = await log.create(redis, log_name)
    stream = keys.partitions[0]
    async with running(redis, keys, identity, url, tmp_path) as (projector, client):
        await wait_until(lambda: all(one.owning for one in projector.archiving.archivers))
        await own_mariadb.kill()
        end = await delivered(redis, stream, 0)

        async def archived() -> bool:
            return await redis.hget(stream.archive, "position") == end.entry_id.encode()

        await wait_until(archived)

        async def blocked() -> bool:
            return await value(client, 'broker_trim_held{holder="database",stream="0"}') == 1

        await wait_until(blocked)
        assert await redis.xlen(stream.events) == 30
        await own_mariadb.start()

        async def cut() -> bool:
            return await redis.xlen(stream.events) == 1

        await wait_until(cut, within=60)


async def test_a_lost_archive_alerts(redis, log_name, store, tmp_path):
    """⚠ An archive that is gone, after something was cut: nothing more is, the metric rises, health says why."""
    keys, identity = await log.create(redis, log_name)
    stream = keys.partitions[0]
    async with running(redis, keys, identity, store.url, tmp_path) as (_, client):
        await delivered(redis, stream, 0)

        async def cut() -> bool:
            return await redis.xlen(stream.events) == 1

        await wait_until(cut)
        await asyncio.to_thread(shutil.rmtree, tmp_path / "archive")
        await delivered(redis, stream, 0)

        async def says() -> bool:
            _, status, checks = await health(client)
            return status == "degraded" and "lacks events that the stream no longer has" in checks["archive"]

        await wait_until(says)

        async def alerts() -> bool:
            found = await value(client, 'broker_trim_overdue_seconds{stream="0"}')
            return found is not None and found > 0.3

        await wait_until(alerts)
        assert await value(client, 'broker_trim_held{holder="archive",stream="0"}') == 1
        assert await redis.xlen(stream.events) == 31


async def test_a_bucket_that_refuses_writes(redis, log_name, store, tmp_path, s3):
    """⚠ Nothing is cut, health and metrics say what is waited for; allowed again, all of it is archived once."""
    keys, identity = await log.create(redis, log_name)
    stream = keys.partitions[0]
    bucket = buckets.Bucket()
    bucket.refuse_writes()
    archive = StreamArchive(BucketStorage(bucket.url), identity.log_id, "0")
    async with running(redis, keys, identity, store.url, tmp_path, archive_url=bucket.url) as (_, client):
        await delivered(redis, stream, 0)

        async def alerts() -> bool:
            found = [
                await value(client, f"broker_{name}")
                for name in (
                    'archive_state{state="waiting for the archive",stream="0"}',
                    'trim_held{holder="archive",stream="0"}',
                    'archive_unsealed_events{stream="0"}',
                )
            ]
            overdue = await value(client, 'broker_trim_overdue_seconds{stream="0"}')
            return found == [1, 1, 30] and overdue > 0.3

        await wait_until(alerts)
        code, status, checks = await health(client)
        assert (code, status) == (200, "degraded")
        assert "stream 0: waiting for the archive" in checks["archive"]
        assert archive.last() is None
        assert await redis.xlen(stream.events) == 30
        expected = await archives.lying(redis, stream)
        bucket.allow_writes()

        async def cut() -> bool:
            return await redis.xlen(stream.events) == 1

        await wait_until(cut)
        await wait_until(partial(_well, client))
    assert archives.same(await archives.entries(archive), expected)


async def _well(client: httpx.AsyncClient) -> bool:
    return (await health(client))[:2] == (200, "healthy")


async def test_short_memory_shortens_history(redis, log_name, store, tmp_path):
    """With memory running short no more history is kept than is needed."""
    keys, identity = await log.create(redis, log_name)
    stream = keys.partitions[0]
    short = False
    settings = Settings(
        data_dir=tmp_path, projector_metrics_port=0, archive_segment_seconds=0.1, stream_history=3600
    )
    common = {"redis": redis, "keys": keys, "identity": identity, "store": store}
    made = partial(Archiving, settings, interval=0.05, pressed=lambda: short, **common)
    projector = Projector(settings, archiving=made, **common)
    stop = asyncio.Event()
    task = asyncio.create_task(projector.run(stop))
    end = await delivered(redis, stream, 0)

    async def archived() -> bool:
        return await redis.hget(stream.archive, "position") == end.entry_id.encode()

    await wait_until(archived)
    await wait_until(lambda: projector.archiving.trimmer.status["0"].bound is not None)
    assert await redis.xlen(stream.events) == 30
    short = True

    async def cut() -> bool:
        return await redis.xlen(stream.events) == 1

    await wait_until(cut)
    stop.set()
    await task


async def test_storage_that_cannot_be_written_degrades(own_valkey, log_name, store, tmp_path):
    """Health says what is waited for, and goes on answering 200: nobody who submits or reads has to wait."""
    redis = connection.connect(own_valkey.url)
    keys, identity = await log.create(redis, log_name)
    (tmp_path / "archive").write_bytes(b"in the way")
    async with running(redis, keys, identity, store.url, tmp_path) as (_, client):

        async def degraded() -> bool:
            code, status, checks = await health(client)
            return (code, status) == (200, "degraded") and "waiting for the archive" in checks["archive"]

        await wait_until(degraded)
        end = await delivered(redis, keys.partitions[0], 0)
        await wait_until(lambda: reached(store, end))
        (tmp_path / "archive").unlink()
        await wait_until(partial(_well, client))
    await redis.aclose()
