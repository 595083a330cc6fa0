"""`streams info` against a running system and against none."""

from __future__ import annotations

import json
from pathlib import Path

from broker.events import connection
from support import log
from support.system import System


async def test_info_shows_every_stream(system: System) -> None:
    """Sizes, ids, groups, open messages and the incarnation of each partition, of control and of access."""
    system.run("send", "--from", "+4915200000000", "--body", "Hello", "--wait")
    await system.quiet()
    done = system.run("streams", "info", "--json")
    assert done.returncode == 0, done.stderr
    found = {one["stream"]: one for one in json.loads(done.stdout)}
    assert list(found) == ["0", "1", "2", "3", "control", "access"]
    assert all(one["incarnation"] and one["refused"] is None for one in found.values())
    busy = max((found[name] for name in "0123"), key=lambda one: one["length"])
    redis = system.redis()
    stream = await redis.xinfo_stream(system.keys().partitions[int(busy["stream"])].events)
    await redis.aclose()
    # Not one number: what is removed by hand stays counted as added.
    assert (busy["length"], busy["added"]) == (stream["length"], stream["entries-added"])
    assert busy["length"] > 0
    assert busy["first"] <= busy["last"]
    assert busy["memory_bytes"] > 0
    # The archiver makes its group when it reads for the first time.
    assert {group["name"] for group in busy["groups"]} - {"archive"} == {"delivery", "projections"}
    assert (busy["open"], busy["due"], busy["parked"]) == (0, 0, 0)
    assert found["control"]["open"] is None


async def test_a_refused_stream_is_loud(
    valkey, redis: connection.Redis, log_name: str, tmp_path: Path
) -> None:
    """A stream that is refused, or lost its meta, is named with the reason, and the exit code is 1."""
    keys, _ = await log.create(redis, log_name)
    await redis.hset(keys.partitions[1].meta, "refused", "it went back in time")
    await redis.hset(
        keys.partitions[0].open,
        mapping={b"a" * 16: b"1-0|1|5|p|0|0||demo|x", b"b" * 16: b"1-1|1|1|d|9|0||demo|x"},
    )
    system = System(tmp_path, redis_url=valkey.url, log_name=log_name)
    done = system.run("streams", "info")
    assert done.returncode == 1
    assert "1: refused: it went back in time" in done.stdout
    found = json.loads(system.run("streams", "info", "--json").stdout)
    assert (found[0]["open"], found[0]["parked"]) == (2, 1)

    await redis.delete(keys.partitions[1].meta)
    done = system.run("streams", "info")
    assert done.returncode == 1
    assert "no incarnation" in done.stdout


def test_without_redis_the_error_asks_for_up(tmp_path: Path) -> None:
    """Nothing answers: the address, and what to run."""
    done = System(tmp_path).run("streams", "info")
    assert done.returncode == 1
    assert "is `broker up` running?" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_log_the_error_says_how_it_is_made(valkey, log_name: str, tmp_path: Path) -> None:
    """A Redis that holds no log of this name."""
    done = System(tmp_path, redis_url=valkey.url, log_name=log_name).run("streams", "info")
    assert done.returncode == 1
    assert "`broker up` or `broker prepare` creates it" in done.stderr


async def test_a_repair_says_what_it_would_do(system: System) -> None:
    """A log in order and in use is left alone, and so is one for which nobody says yes; `--json` does not ask."""
    done = system.run("streams", "repair", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["refused"], found["streams"], found["done"]) == ([], [], False)
    assert found["at_work"]
    done = system.run("streams", "repair", "--yes")
    assert done.returncode == 1
    assert "in use" in done.stderr
    for answer in ("n\n", ""):
        done = system.run("streams", "repair", input=answer)
        assert done.returncode == 1
        assert "Nothing was changed" in done.stderr
    done = system.run("streams", "repair", "--json")
    assert done.returncode == 2
