"""`archive status`, `archive verify` and what `streams info` says of the archive."""

from __future__ import annotations

import json

import pytest

from broker.events.archive.trimming import Trimmer
from support import archives, histories, log
from support.system import System
from support.waiting import wait_until


@pytest.fixture
async def archived(redis, valkey, log_name, tmp_path, monkeypatch):
    """A log whose first partition is archived and cut; what `broker` sees of it."""
    monkeypatch.setattr(archives, "LOG_ID", log_name)
    keys, _ = await log.create(redis, log_name)
    stream = keys.partitions[0]
    at = await histories.append(redis, stream, histories.happy(20))
    await redis.xgroup_create(stream.events, "delivery", at[-1].entry_id)
    await histories.append(redis, keys.partitions[1], histories.happy(1, 1))
    one = archives.archiver(redis, stream, tmp_path / "archive")
    async with archives.running(one):

        async def recorded() -> bool:
            return await redis.hget(stream.archive, "position") == at[-1].entry_id.encode()

        await wait_until(recorded)

        async def needs():
            return {"0": {"audit_log": at[9]}}

        await Trimmer([one], needs, lambda: 0).round()
    system = System(tmp_path, redis_url=valkey.url, log_name=log_name, partitions=2)
    return system, one.archive, at


def answer(system: System, *command: str, code: int = 0):
    done = system.run(*command, "--json")
    assert done.returncode == code, done.stderr
    return {one["stream"]: one for one in json.loads(done.stdout)}


async def test_status(archived):
    """How far each stream is archived, what is in the archive only, and who holds the rest."""
    system, archive, at = archived
    newest = archive.last()
    found = answer(system, "archive", "status")
    assert found["0"] == {
        "stream": "0",
        "segments": newest.number,
        "events": 60,
        "last": str(at[-1]),
        "sealed_at": newest.sealed_at,
        "behind": 0,
        "trimmed": 9,
        "held_by": "audit_log",
    }
    assert (found["1"]["events"], found["1"]["behind"], found["1"]["last"]) == (0, 3, None)
    assert "audit_log" in system.run("archive", "status").stdout
    info = answer(system, "streams", "info")
    assert (info["0"]["archived"], info["0"]["held_by"]) == (at[-1].entry_id, "audit_log")
    assert (info["1"]["archived"], info["1"]["held_by"]) == (None, None)
    assert "stays in Redis, because of it: audit_log" in system.run("streams", "info").stdout


async def test_status_of_an_archive_that_is_not_there(archived):
    """Events that are neither in Redis nor in the archive are named, and the exit code is 1."""
    system, _, _ = archived
    (system.data / "archive").rename(system.data / "elsewhere")
    done = system.run("archive", "status")
    assert done.returncode == 1
    assert "9 events have left Redis, 0 are archived" in done.stdout
    system.overrides["archive_url"] = str(system.data / "elsewhere")
    assert system.run("archive", "status").returncode == 0


async def test_verify(archived):
    """Every segment is read; needs no server; a changed one is named, and the exit code is 1."""
    system, archive, _ = archived
    system.overrides["redis_url"] = "redis://127.0.0.1:1"
    found = answer(system, "archive", "verify")
    assert (found["0"]["events"], found["0"]["damage"]) == (60, None)
    assert found["0"]["segments"] == archive.last().number
    path = system.data / "archive" / archive.base / archives.manifests(archive)[1].file
    path.write_bytes(path.read_bytes()[:-1])
    found = answer(system, "archive", "verify", "--stream", "0", code=1)
    assert found["0"]["segments"] == 1
    assert "Segment 2 of stream 0" in found["0"]["damage"]
    done = system.run("archive", "verify")
    assert "damaged" in done.stdout
    assert "Segment 2 of stream 0" in done.stdout


async def test_verify_says_what_is_not_there(archived):
    """A stream that there is not, an empty archive, another log: a sentence, no traceback."""
    system, _, _ = archived
    for arguments, says in (
        (("--stream", "7"), "holds no stream 7"),
        (("--log-id", "other"), "holds nothing of the log other"),
    ):
        done = system.run("archive", "verify", *arguments)
        assert done.returncode == 1
        assert says in done.stderr
        assert "Traceback" not in done.stderr
    system.overrides["archive_url"] = str(system.data / "empty")
    done = system.run("archive", "verify")
    assert done.returncode == 1
    assert "0 logs" in done.stderr
    system.overrides["archive_url"] = "nothing://x"
    done = system.run("archive", "verify")
    assert "archive_url" in done.stderr
    assert "Traceback" not in done.stderr
