"""The archiver against a real server: order, bytes, restarts, owners, storage that refuses."""

from __future__ import annotations

import asyncio
import json
import shutil
from functools import partial
from itertools import pairwise

import fsspec
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

from broker.events import connection, types
from broker.events.archive.archiver import Limits, State
from broker.events.archive.storage import ArchiveUnavailable, BucketStorage, LocalStorage
from broker.events.archive.trimming import Trimmer, TrimStatus
from broker.events.positions import start
from broker.services.projector import metrics
from support import archives, buckets, histories, log
from support.proxy import proxy_to_port
from support.waiting import wait_until


@pytest.fixture
async def keys(redis, log_name):
    """The keys of a log of two partitions."""
    return (await log.create(redis, log_name))[0]


async def archived_upto(archive, position) -> bool:
    newest = await asyncio.to_thread(archive.last)
    return newest is not None and newest.end >= position


async def test_every_stream_is_archived_in_order_and_unchanged(redis, keys, tmp_path):
    """Partitions, control and access; the bytes of every field, of entries that are no events too."""
    for stream in keys.partitions:
        await histories.append(redis, stream, histories.happy(40, stream.number))
        await redis.xadd(stream.events, {b"odd": b"\x00\xff", b"pair": b""})
        await redis.xadd(stream.events, {b"t": b"\xff", b"s": b"1", b"m": b"2", b"d": b"3"})
        await histories.append(redis, stream, histories.happy(1, stream.number))
    await histories.append(redis, keys.control, [
        histories.Fact(b"client:acme", types.ClientRegistered("acme")),
    ])  # fmt: skip
    await histories.append(redis, keys.access, [
        histories.Fact(b"user:1", types.LoginSucceeded("1", "127.0.0.1")),
    ])  # fmt: skip
    async with archives.running(*(archives.archiver(redis, stream, tmp_path) for stream in keys.streams)):
        for stream in keys.streams:
            expected = await archives.lying(redis, stream)
            archive = archives.stream_archive(tmp_path, stream.stream)
            await wait_until(lambda a=archive, at=expected[-1].position: archived_upto(a, at))
            assert archives.same(await archives.entries(archive), expected)


async def test_manifests_say_what_segments_hold(redis, keys, tmp_path):
    """First and last id, count, hash, the hash of the segment before; readable by people; Redis knows the end."""
    stream = keys.partitions[0]
    at = await histories.append(redis, stream, histories.happy(60))
    archive = archives.stream_archive(tmp_path)
    async with archives.running(archives.archiver(redis, stream, tmp_path)):
        await wait_until(lambda: archived_upto(archive, at[-1]))
        await wait_until(lambda: _recorded(redis, stream, at[-1].entry_id))
    found = archives.manifests(archive)
    assert len(found) > 1
    assert (found[0].start, found[-1].end) == (at[0], at[-1])
    assert [one.number for one in found] == list(range(1, len(found) + 1))
    assert sum(one.count for one in found) == found[-1].events == 180
    assert found[0].previous == "0" * 64
    assert all(later.previous == one.sha256 for one, later in pairwise(found))
    path = next((tmp_path / archives.LOG_ID / "0" / "0000000").glob("0000000001-e1.json"))
    assert json.loads(path.read_text("utf-8"))["sha256"] == found[0].sha256
    recorded = await redis.hgetall(stream.archive)
    assert int(recorded[b"segment"]) == found[-1].number
    assert int(recorded[b"events"]) == 180
    assert recorded[b"sha256"].decode() == found[-1].sha256


async def _recorded(redis, stream, entry_id: str) -> bool:
    return await redis.hget(stream.archive, "position") == entry_id.encode()


async def test_segments_are_bounded_by_size_and_by_time(redis, keys, tmp_path):
    """A segment ends with the page in which it reached its size; a quiet stream's ends by its age."""
    stream = keys.partitions[0]
    at = await histories.append(redis, stream, histories.happy(1000))
    archive = archives.stream_archive(tmp_path)
    by_size = archives.archiver(redis, stream, tmp_path, limits=Limits(size=10_000, seconds=3600, poll=0.02))
    async with archives.running(by_size):
        await wait_until(lambda: by_size.status.segments == 3)
    assert [one.count for one in archives.manifests(archive)] == [1000, 1000, 1000]
    more = await histories.append(redis, stream, histories.happy(1))
    never = archives.archiver(redis, stream, tmp_path, limits=Limits(size=10_000, seconds=3600, poll=0.02))
    async with archives.running(never):
        await wait_until(lambda: never.status.lag_events == 3)
        assert never.status.lag_seconds > 0
    async with archives.running(archives.archiver(redis, stream, tmp_path)):
        await wait_until(lambda: archived_upto(archive, more[-1]))
    assert archives.manifests(archive)[-1].count == 3
    assert at[-1] == archives.manifests(archive)[-2].end


async def test_a_restart_goes_on_after_the_last_segment(redis, keys, tmp_path):
    """The manifests alone say where: what Redis held of it is written anew."""
    stream = keys.partitions[0]
    archive = archives.stream_archive(tmp_path)
    for turn in range(3):
        at = await histories.append(redis, stream, histories.happy(20))
        await redis.delete(stream.archive)
        async with archives.running(archives.archiver(redis, stream, tmp_path, owner=f"a{turn}")):
            await wait_until(lambda end=at[-1]: archived_upto(archive, end))
            await wait_until(lambda end=at[-1]: _recorded(redis, stream, end.entry_id))
    assert archives.same(await archives.entries(archive), await archives.lying(redis, stream))
    assert {one.epoch for one in archives.manifests(archive)} == {1, 2, 3}


async def test_two_archivers_never_both_win(redis, keys, tmp_path):
    """⚠ Leases that pass to and fro in mid-segment: one history, every number once."""
    stream = keys.partitions[0]
    archive = archives.stream_archive(tmp_path)
    both = [archives.archiver(redis, stream, tmp_path, owner=name, ttl=0.3) for name in ("a1", "a2")]
    async with archives.running(*both):
        for turn in range(12):
            at = await histories.append(redis, stream, histories.happy(15))
            # Whoever owns it is robbed of it, wherever it is.
            await redis.hset(stream.archive_lease, mapping={"owner": f"robber{turn}", "expires": "1"})
            await wait_until(lambda end=at[-1]: archived_upto(archive, end))
    assert {one.owning for one in both} == {False}
    assert archives.same(await archives.entries(archive), await archives.lying(redis, stream))


class Slow(LocalStorage):
    """Storage whose manifests wait to be let through."""

    def __init__(self, root) -> None:
        super().__init__(root)
        self.held: asyncio.Event | None = None
        self.go = None

    def put(self, name: str, content: bytes) -> None:
        if name.endswith(".json") and self.go is not None:
            self.loop.call_soon_threadsafe(self.held.set)
            self.go.wait()
        super().put(name, content)


async def test_a_paused_archiver_s_late_manifest_does_not_count(redis, keys, tmp_path):
    """⚠ A writer that stood still over the loss of its lease puts its manifest after its successor sealed."""
    import threading

    stream = keys.partitions[0]
    archive = archives.stream_archive(tmp_path)
    slow = Slow(tmp_path)
    slow.loop, slow.held, slow.go = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    await histories.append(redis, stream, histories.happy(5))
    paused = archives.archiver(redis, stream, slow, owner="paused")
    async with archives.running(paused):
        await slow.held.wait()
        await redis.hset(stream.archive_lease, mapping={"owner": "", "expires": "0"})
        at = await histories.append(redis, stream, histories.happy(5))
        async with archives.running(archives.archiver(redis, stream, tmp_path, owner="next")) as (following,):
            await wait_until(lambda: archived_upto(archive, at[-1]))
            slow.go.set()
            await wait_until(lambda: paused.status.state is State.STANDBY)
            assert following.owning
    names = sorted(path.name for path in (tmp_path / archives.LOG_ID / "0" / "0000000").glob("*1-e*.json"))
    assert names == ["0000000001-e1.json", "0000000001-e2.json"]
    assert archives.manifests(archive)[0].epoch == 2
    assert archives.same(await archives.entries(archive), await archives.lying(redis, stream))
    assert await asyncio.to_thread(archive.tidy, archive.last().number) == 2


async def test_nothing_late_replaces_what_was_built_on(redis, keys, tmp_path):
    """⚠ Two writers paused one after the other put their manifests only when a third has gone on: history holds."""
    stream = keys.partitions[0]
    archive = archives.stream_archive(tmp_path)
    await histories.append(redis, stream, histories.happy(4))
    first, second = [archives.archiver(redis, stream, tmp_path, owner=name) for name in ("one", "two")]

    async def gathered(archiver):
        """What it would seal now: it owns the stream, has read, and stands still."""
        archiver._limits = Limits(size=10**9, seconds=3600, poll=0.01)
        async with archives.running(archiver):
            await wait_until(lambda: archiver.status.lag_events > 0)
            content, digest = archiver._segment.pack()
            return archiver._manifest(len(content), digest), content

    early = await gathered(first)
    await histories.append(redis, stream, histories.happy(4))
    late = await gathered(second)
    assert (early[0].number, late[0].number, early[0].epoch < late[0].epoch) == (1, 1, True)
    assert early[0].count < late[0].count
    for put in (archive.put_segment, lambda manifest, _: archive.put_manifest(manifest)):
        put(*early)
    at = await histories.append(redis, stream, histories.happy(4))
    async with archives.running(archives.archiver(redis, stream, tmp_path, owner="three")):
        await wait_until(lambda: archived_upto(archive, at[-1]))
    archive.put_segment(*late)
    archive.put_manifest(late[0])
    assert archives.same(await archives.entries(archive), await archives.lying(redis, stream))
    assert {one.epoch for one in archives.manifests(archive)} == {3}


class Refusing(LocalStorage):
    """Storage that can be told to refuse writing, or everything."""

    writes = True
    reads = True

    def put(self, name: str, content: bytes) -> None:
        if not self.writes:
            raise ArchiveUnavailable("no more writing")
        super().put(name, content)

    def names(self, folder: str) -> list[str]:
        if not self.reads:
            raise ArchiveUnavailable("no reading")
        return super().names(folder)


@pytest.mark.parametrize("what", ["writes", "reads"])
async def test_storage_that_refuses_is_waited_for(redis, keys, tmp_path, what):
    """Nothing is lost or doubled; the state says what is waited for; it goes on by itself."""
    stream = keys.partitions[0]
    storage = Refusing(tmp_path)
    setattr(storage, what, False)
    at = await histories.append(redis, stream, histories.happy(30))
    one = archives.archiver(redis, stream, storage)
    async with archives.running(one):
        await wait_until(lambda: one.status.state is State.NO_ARCHIVE)
        assert "no " in one.status.detail
        setattr(storage, what, True)
        await wait_until(lambda: archived_upto(one.archive, at[-1]))
        await wait_until(lambda: one.status.state is State.OWNER)
    assert archives.same(await archives.entries(one.archive), await archives.lying(redis, stream))


async def test_replies_of_a_bucket_that_are_lost(redis, keys):
    """⚠ What is stored although its writer hears of an error is not waited for: it goes on, and history is whole."""
    stream = keys.partitions[0]
    storage, client = buckets.unsteady()
    client.mode = "unheard"
    at = await histories.append(redis, stream, histories.happy(30))
    one = archives.archiver(redis, stream, storage)
    async with archives.running(one):
        await wait_until(lambda: archived_upto(one.archive, at[-1]))
        await wait_until(lambda: _recorded(redis, stream, at[-1].entry_id))
        assert one.status.state is State.OWNER
    assert client.refused > 0
    assert archives.same(await archives.entries(one.archive), await archives.lying(redis, stream))


async def test_a_reply_of_a_real_bucket_that_is_lost(redis, keys, s3, monkeypatch):
    """⚠ Over HTTP: the put arrives, its reply does not, the client tries once more and is refused; it goes on."""
    stream = keys.partitions[0]
    bucket = buckets.Bucket()
    async with proxy_to_port(s3) as proxy:
        monkeypatch.setitem(fsspec.config.conf, "s3", buckets.addressed(proxy.port))
        one = archives.archiver(redis, stream, BucketStorage(bucket.url))
        async with archives.running(one):
            await wait_until(lambda: one.status.state is State.OWNER)
            # It asks for nothing before it puts its first segment.
            proxy.mode, proxy.drops = "drop-reply", 1
            at = await histories.append(redis, stream, histories.happy(30))
            await wait_until(lambda: archived_upto(one.archive, at[-1]))
            await wait_until(lambda: _recorded(redis, stream, at[-1].entry_id))
            assert (proxy.dropped, one.status.state) == (1, State.OWNER)
        assert archives.same(await archives.entries(one.archive), await archives.lying(redis, stream))


async def test_a_refusing_bucket_keeps_everything(redis, keys):
    """⚠ Nothing is cut before it is archived, and the state says why; then all goes on, nothing twice."""
    stream = keys.partitions[0]
    storage, client = buckets.unsteady()
    at = await histories.append(redis, stream, histories.happy(30))
    await redis.xgroup_create(stream.events, "delivery", at[-1].entry_id)
    expected = await archives.lying(redis, stream)
    one = archives.archiver(redis, stream, storage)
    trimmer = Trimmer([one], _nothing, lambda: 0)
    client.mode = "refuse"
    async with archives.running(one):
        await wait_until(lambda: one.status.state is State.NO_ARCHIVE and client.refused > 1)
        await trimmer.trim(one, {})
        assert (trimmer.status["0"].holder, await redis.xlen(stream.events)) == ("archive", 90)
        assert (one.status.lag_events, one.status.detail.endswith("Access Denied")) == (90, True)
        behind = one.status.lag_seconds
        await wait_until(lambda: one.status.lag_seconds > behind > 0)
        client.mode = "allow"
        await wait_until(lambda: _recorded(redis, stream, at[-1].entry_id))
        await wait_until(lambda: one.status.state is State.OWNER)
        await trimmer.trim(one, {})
        assert await redis.xlen(stream.events) == 1
    assert archives.same(await archives.entries(one.archive), expected)


@pytest.fixture
def registry(monkeypatch):
    """Metrics of this test's own: a process has one of each, and other tests count what they did themselves."""
    own = CollectorRegistry()
    for kind in (Counter, Gauge):
        monkeypatch.setattr(metrics.web, kind.__name__.lower(), partial(kind, registry=own))
    return own


async def test_what_waits_is_seen_to_grow_old(redis, keys, registry):
    """⚠ Where nothing is answered, the archiver lets go between its tries: the age is shown all the same."""
    stream = keys.partitions[0]
    storage, client = buckets.unsteady()
    await histories.append(redis, stream, histories.happy(1))
    one = archives.archiver(redis, stream, storage)
    exporter = metrics.ArchiveExporter()

    def shown() -> float:
        exporter.export(one.status, TrimStatus(), owning=one.owning)
        return registry.get_sample_value("broker_archive_unsealed_seconds", {"stream": stream.stream})

    async with archives.running(one):
        await wait_until(lambda: one.status.sealed is not None)
        client.mode = "away"
        await histories.append(redis, stream, histories.happy(1))
        await wait_until(
            lambda: one.status.state is State.NO_ARCHIVE and not one.owning and client.refused > 1
        )
        before = shown()
        await wait_until(lambda: not one.owning and shown() > before > 0)
        client.mode = "allow"
        await wait_until(lambda: one.status.state is State.OWNER and shown() == 0)


async def test_a_refused_archiver_stops_when_told(redis, keys, tmp_path):
    """Waiting for storage does not keep a process from ending."""
    stream = keys.partitions[0]
    storage = Refusing(tmp_path)
    storage.writes = False
    await histories.append(redis, stream, histories.happy(3))
    one = archives.archiver(redis, stream, storage)
    async with archives.running(one):
        await wait_until(lambda: one.status.state is State.NO_ARCHIVE)
    assert one.status.state is State.STOPPED
    assert await redis.hget(stream.archive_lease, "owner") == b""


async def trim_all(archiver) -> None:
    await Trimmer([archiver], _nothing, lambda: 0).trim(archiver, {})


async def _nothing():
    return {}


async def test_an_archive_that_lacks_what_was_trimmed_is_refused(redis, keys, tmp_path):
    """⚠ With the archive gone or another one, nothing more is cut and a person is told; brought back, it goes on."""
    stream = keys.control
    at = await histories.append(redis, stream, [
        histories.Fact(b"client:a", types.ClientRegistered("a")) for _ in range(9)
    ])  # fmt: skip
    async with archives.running(archives.archiver(redis, stream, tmp_path / "one")) as (one,):
        await wait_until(lambda: archived_upto(one.archive, at[-1]))
        await wait_until(lambda: _recorded(redis, stream, at[-1].entry_id))
        await trim_all(one)
    assert await redis.xlen(stream.events) == 1
    other = archives.archiver(redis, stream, tmp_path / "other")
    async with archives.running(other):
        await wait_until(lambda: other.status.state is State.REFUSED)
        assert "lacks events" in other.status.detail
        assert not other.owning
        (tmp_path / "one").rename(tmp_path / "other")
        await wait_until(lambda: other.status.state is State.OWNER)


async def test_an_archive_that_is_lost_under_an_archiver(redis, keys, tmp_path):
    """⚠ Nothing is put on top of what is gone: what Redis still has is archived anew, what it has not is refused."""
    stream = keys.partitions[0]
    at = await histories.append(redis, stream, histories.happy(10))
    one = archives.archiver(redis, stream, tmp_path / "archive")
    async with archives.running(one):
        await wait_until(lambda: archived_upto(one.archive, at[-1]))
        await asyncio.to_thread(shutil.rmtree, tmp_path / "archive")
        at = await histories.append(redis, stream, histories.happy(10))
        await wait_until(lambda: archived_upto(one.archive, at[-1]))
        assert await archives.entries(one.archive) == await archives.lying(redis, stream)
        await wait_until(lambda: _recorded(redis, stream, at[-1].entry_id))
        await redis.xgroup_create(stream.events, "delivery", "$")
        await trim_all(one)
        await asyncio.to_thread(shutil.rmtree, tmp_path / "archive")
        await histories.append(redis, stream, histories.happy(10))
        await wait_until(lambda: "lacks events" in one.status.detail)
        assert one.status.state is State.REFUSED
    assert not (tmp_path / "archive").exists()


async def test_a_log_behind_its_archive_is_refused(redis, keys, tmp_path):
    """⚠ A Redis that was rolled back behind what is archived takes nothing more until it is repaired."""
    stream = keys.partitions[0]
    at = await histories.append(redis, stream, histories.happy(3))
    async with archives.running(archives.archiver(redis, stream, tmp_path)) as (one,):
        await wait_until(lambda: archived_upto(one.archive, at[-1]))
    await redis.delete(stream.events)
    await histories.append(redis, keys.partitions[1], histories.happy(1))
    await redis.xadd(stream.events, histories.submitted().fields(), id="1-1")
    async with archives.running(archives.archiver(redis, stream, tmp_path)) as (two,):
        await wait_until(lambda: two.status.state is State.REFUSED)
        assert "lost data" in two.status.detail
    assert await redis.hget(stream.meta, "refused")


async def test_epochs_stay_above_those_of_the_archive(redis, keys, tmp_path):
    """⚠ A Redis that lost its leases does not give out epochs that the archive knows."""
    stream = keys.partitions[0]
    await histories.append(redis, stream, histories.happy(1))
    one = archives.archiver(redis, stream, tmp_path)
    for _ in range(3):
        async with archives.running(one):
            await wait_until(lambda: one.owning)
    at = await histories.append(redis, stream, histories.happy(1))
    async with archives.running(one):
        await wait_until(lambda: archived_upto(one.archive, at[-1]))
    before = archives.manifests(one.archive)[-1].epoch
    assert before > 1
    await redis.delete(stream.archive_lease)
    at = await histories.append(redis, stream, histories.happy(1))
    async with archives.running(one):
        await wait_until(lambda: archived_upto(one.archive, at[-1]))
    assert archives.manifests(one.archive)[-1].epoch == before + 1


async def test_redis_away_and_back(own_valkey, log_name, tmp_path):
    """Redis is killed while segments are made: the archiver says what it waits for, and resumes."""
    redis = connection.connect(own_valkey.url)
    keys, _ = await log.create(redis, log_name)
    stream = keys.partitions[0]
    await histories.append(redis, stream, histories.happy(50))
    one = archives.archiver(redis, stream, tmp_path)
    async with archives.running(one):
        await wait_until(lambda: one.owning)
        await own_valkey.kill()
        await wait_until(lambda: one.status.state is State.NO_REDIS)
        await own_valkey.start()
        await wait_until(lambda: one.status.state is State.OWNER)
        at = await histories.append(redis, stream, histories.happy(50))
        await wait_until(lambda: archived_upto(one.archive, at[-1]))
    assert archives.same(await archives.entries(one.archive), await archives.lying(redis, stream))
    await redis.aclose()


async def test_the_group_shows_the_lag(redis, keys, tmp_path):
    """XINFO GROUPS knows how far the archive has read; a destroyed group is made again."""
    stream = keys.partitions[0]
    at = await histories.append(redis, stream, histories.happy(10))
    async with archives.running(archives.archiver(redis, stream, tmp_path)) as (one,):
        await wait_until(lambda: archived_upto(one.archive, at[-1]))
        await redis.xgroup_destroy(stream.events, "archive")
        at = await histories.append(redis, stream, histories.happy(10))
        await wait_until(lambda: archived_upto(one.archive, at[-1]))
    [group] = await redis.xinfo_groups(stream.events)
    assert (group["name"], group["pending"], group["lag"]) == (b"archive", 0, 0)
    assert start("0") < at[0]
