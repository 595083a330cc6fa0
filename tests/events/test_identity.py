"""The log's identity: made once, remembered, and refused when Redis is not the one we know."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from broker.errors import LogRefused, LogUnavailable, SettingsError
from broker.events import connection, log_identity
from broker.events.keys import LogKeys
from broker.settings import Settings


@pytest.fixture
def settings(tmp_path: Path, log_name: str) -> Settings:
    return Settings(data_dir=tmp_path / "var", log_name=log_name, partitions=3)


def elsewhere(settings: Settings, tmp_path: Path, name: str = "elsewhere", **changes) -> Settings:
    """The same log from another machine: another data directory."""
    return msgspec.structs.replace(settings, data_dir=tmp_path / name, **changes)


async def empty(redis, settings: Settings) -> None:
    keys = [key async for key in redis.scan_iter(match=f"*{{{settings.log_name}:*")]
    await redis.delete(*keys)


async def test_created_once_and_loaded_again(redis, settings):
    """Creating makes an incarnation for every stream, writes the file; loading and creating again give the same."""
    made = await log_identity.create(redis, settings)
    assert set(made.incarnations) == {"0", "1", "2", "control", "access"}
    assert len(set(made.incarnations.values())) == 5
    assert await log_identity.load(redis, settings) == made
    assert await log_identity.create(redis, settings) == made
    assert log_identity.read_file(settings) == made
    for stream in LogKeys(settings.log_name, 3).streams:
        meta = await redis.hgetall(stream.meta)
        assert meta[b"incarnation"].decode() == made.incarnations[stream.stream]
        assert (meta[b"log_id"].decode(), meta[b"partitions"]) == (made.log_id, b"3")


async def test_many_that_create_at_once_agree(redis, settings, tmp_path):
    """Twenty creators on different machines: one log."""
    made = await asyncio.gather(
        *(log_identity.create(redis, elsewhere(settings, tmp_path, f"host-{n}")) for n in range(20))
    )
    assert all(one == made[0] for one in made)


@pytest.mark.parametrize("after", range(5))
async def test_a_creation_that_was_interrupted_is_refused_by_load_and_finished_by_create(
    redis, settings, monkeypatch, after
):
    """Killed after any number of streams: nobody works on half a log, and the next creation completes it."""
    joined = 0
    real = log_identity._join

    async def dying(*args):
        nonlocal joined
        if joined == after:
            raise LogUnavailable("killed")
        joined += 1
        return await real(*args)

    monkeypatch.setattr(log_identity, "_join", dying)
    with pytest.raises(LogUnavailable):
        await log_identity.create(redis, settings)
    monkeypatch.undo()
    with pytest.raises(LogRefused, match="not finished"):
        await log_identity.load(redis, settings)
    made = await log_identity.create(redis, settings)
    assert await log_identity.load(redis, settings) == made


async def test_no_log_yet_is_refused_with_what_creates_it(redis, settings):
    """Loading never creates."""
    with pytest.raises(LogRefused, match="broker up"):
        await log_identity.load(redis, settings)
    assert await redis.exists(LogKeys(settings.log_name, 3).control.meta) == 0


@pytest.mark.parametrize("action", [log_identity.load, log_identity.create])
async def test_an_emptied_redis_is_refused(redis, settings, action):
    """A restarted process neither uses nor makes a new log where the data directory knows one."""
    await log_identity.create(redis, settings)
    await empty(redis, settings)
    with pytest.raises(LogRefused, match=r"emptied.*broker streams repair"):
        await action(redis, settings)
    assert await redis.exists(LogKeys(settings.log_name, 3).control.meta) == 0


@pytest.mark.parametrize("stream", range(5))
@pytest.mark.parametrize("action", [log_identity.load, log_identity.create])
async def test_a_stream_whose_meta_is_lost_is_refused(redis, settings, stream, action):
    """Partial loss of any stream is refused, with its name (control's loss takes the identity itself)."""
    await log_identity.create(redis, settings)
    lost = LogKeys(settings.log_name, 3).streams[stream]
    await redis.delete(lost.meta)
    with pytest.raises(LogRefused, match=r"broker streams repair"):
        await action(redis, settings)


async def test_a_lost_stream_is_refused_without_a_file_too(redis, settings, tmp_path):
    """A machine that never saw the log still sees that part of it is missing."""
    await log_identity.create(redis, settings)
    await redis.delete(LogKeys(settings.log_name, 3).partitions[1].meta)
    with pytest.raises(LogRefused, match="1 is lost"):
        await log_identity.load(redis, elsewhere(settings, tmp_path))


@pytest.mark.parametrize("action", [log_identity.load, log_identity.create])
@pytest.mark.parametrize("partitions", [1, 2, 4, 8])
async def test_another_number_of_partitions_names_both(redis, settings, tmp_path, action, partitions):
    """Fixed when the log was created; the error says what to set."""
    await log_identity.create(redis, settings)
    with pytest.raises(SettingsError, match=f"partitions is {partitions}.* 3"):
        await action(redis, elsewhere(settings, tmp_path, partitions=partitions))


async def test_another_log_in_the_same_redis_is_refused(redis, settings, tmp_path):
    """Redis emptied and a new log created by somebody else: this data directory belongs to the old one."""
    await log_identity.create(redis, settings)
    await empty(redis, settings)
    await log_identity.create(redis, elsewhere(settings, tmp_path))
    with pytest.raises(LogRefused, match="belongs to"):
        await log_identity.load(redis, settings)


async def test_a_data_directory_serves_one_log_name(redis, settings):
    """Changing log_name does not quietly begin another history."""
    await log_identity.create(redis, settings)
    with pytest.raises(SettingsError, match="log_name"):
        await log_identity.create(redis, msgspec.structs.replace(settings, log_name="another"))


async def advance(redis, settings: Settings, made: log_identity.LogIdentity, generation: int):
    """What a repair leaves: a new incarnation for partition 0, in its meta and in control's identity."""
    incarnations = made.incarnations | {"0": log_identity.incarnation(generation)}
    after = msgspec.structs.replace(made, incarnations=incarnations)
    keys = LogKeys(settings.log_name, settings.partitions)
    await redis.hset(keys.partitions[0].meta, "incarnation", incarnations["0"])
    await redis.hset(keys.control.meta, "identity", msgspec.json.encode(after))
    return after


async def test_a_repair_elsewhere_is_followed_and_an_older_copy_refused(redis, settings):
    """A higher generation is a repair; a lower one, or another of the same, is not the Redis that we knew."""
    made = await log_identity.create(redis, settings)
    repaired = await advance(redis, settings, made, 2)
    assert await log_identity.load(redis, settings) == repaired
    await advance(redis, settings, made, 1)
    with pytest.raises(LogRefused, match="older copy"):
        await log_identity.load(redis, settings)
    await advance(redis, settings, made, 2)
    with pytest.raises(LogRefused, match="older copy"):
        await log_identity.load(redis, settings)


async def test_a_stream_with_entries_of_nobody_is_not_adopted(redis, settings):
    """Entries without an incarnation are what a partial loss leaves; creation does not take them over."""
    await redis.xadd(LogKeys(settings.log_name, 3).partitions[2].events, {"t": "x"})
    with pytest.raises(LogRefused, match="entries but no incarnation"):
        await log_identity.create(redis, settings)


async def test_a_damaged_file_and_an_unwritable_directory_are_clear_errors(redis, settings):
    """Neither is passed over: without the file an emptied Redis would go unnoticed."""
    await log_identity.create(redis, settings)
    path = log_identity.file_path(settings)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(LogRefused, match="cannot be read"):
        await log_identity.load(redis, settings)
    path.unlink()
    path.parent.rmdir()
    path.parent.write_bytes(b"in the way")
    with pytest.raises(LogRefused, match="cannot be"):
        await log_identity.load(redis, settings)


async def test_redis_away_is_unavailable_not_refused(own_valkey, settings):
    """An outage must not look like a loss, or somebody would repair a healthy log."""
    redis = connection.connect(own_valkey.url)
    await log_identity.create(redis, settings)
    await own_valkey.kill()
    with pytest.raises(LogUnavailable) as caught:
        await log_identity.load(redis, settings)
    assert not isinstance(caught.value, LogRefused)
    await own_valkey.start()
    assert await log_identity.load(redis, settings)
    await redis.aclose()
