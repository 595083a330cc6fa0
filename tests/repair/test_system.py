"""The whole system on a Redis that is put back to an older state under its feet, and on one that is empty."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import Any

import psutil

from support.system import System, eventually, running
from support.waiting import wait_until


async def repaired(system: System) -> dict[str, Any]:
    """Repair, once the lease of a killed repair has run out."""

    def tried() -> dict[str, Any] | None:
        done = system.run("streams", "repair", "--yes", "--json")
        assert done.returncode == 0 or "under way" in done.stderr, done.stderr
        return json.loads(done.stdout) if done.stdout else None

    return await eventually(tried, within=120)


@contextmanager
def paused(pid: int):
    """Keep a process from noticing what happens meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def roll_back(system: System, copy: Any) -> None:
    """The disk of an hour ago, found by the server that is started again."""
    supervisor = json.loads((system.data / "run" / "state.json").read_bytes())["pid"]
    with paused(supervisor):
        server = psutil.Process(system.kill("valkey"))
        # Nobody waits for it now, so it stays a zombie.
        while server.is_running() and server.status() != psutil.STATUS_ZOMBIE:
            pass
        shutil.rmtree(system.data / "valkey" / "appendonlydir")
        copy.rename(system.data / "valkey" / "appendonlydir")


async def test_a_redis_of_an_hour_ago_and_an_empty_one(tmp_path):
    """⚠ Refused, repaired by a command that is killed once, and in use again; every message has one outcome."""
    with running(tmp_path / "data", archive_segment_seconds=0.3, stream_history=0) as system:
        assert system.run("client", "register", "gone").returncode == 0
        await system.send(15)
        await eventually(lambda: system.delivered() == 15)
        copy = tmp_path / "old"
        shutil.copytree(system.data / "valkey" / "appendonlydir", copy)
        await system.send(15)
        await eventually(lambda: system.delivered() == 30)
        assert system.run("client", "erase", "gone", "--reason", "asked to", "--yes").returncode == 0
        await eventually(lambda: system.query("SELECT 1 FROM audit_log WHERE type='ClientErased'"))

        await asyncio.to_thread(roll_back, system, copy)
        await eventually(lambda: refused(system))
        checks = json.loads(system.run("doctor", "--json").stdout)["checks"]
        (log,) = [one for one in checks if one["name"] == "log"]
        assert (log["status"], "streams repair" in log["fix"]) == ("failed", True)
        await asyncio.to_thread(killed_in_mid_repair, system)
        report = await repaired(system)
        assert ([one["lost"] for one in report["streams"]], report["keys_lost"]) == ([0] * 6, [])
        await eventually(lambda: system.status()["healthy"], within=120)
        await system.send(5)
        await eventually(lambda: system.delivered() == 35)
        assert outcomes(system) == {1}
        shown = json.loads(system.run("client", "list", "--json").stdout)
        assert {one["client_id"]: one["status"] for one in shown}["gone"] == "erased"

        system.down()
        shutil.rmtree(system.data / "valkey")
        report = await repaired(system)
        assert [one["lost"] for one in report["streams"]] == [0] * 6
        system.up()
        await system.send(5)
        await eventually(lambda: system.delivered() == 40)
        assert outcomes(system) == {1}


def refused(system: System) -> bool:
    done = system.run("streams", "info", "--json")
    return bool(done.stdout) and any(one["refused"] for one in json.loads(done.stdout))


def killed_in_mid_repair(system: System) -> None:
    """A repair that is killed when it has shut everybody out and cannot go on."""
    command = [sys.executable, "-m", "broker", "streams", "repair", "--yes", "--data", str(system.data)]
    with system.mysql() as link, link.cursor() as cursor:
        cursor.execute("LOCK TABLES checkpoints READ")
        with subprocess.Popen(command, env=system.environ, stdout=subprocess.DEVNULL) as process:
            asyncio.run(_begun(system))
            process.kill()


async def _begun(system: System) -> None:
    redis, meta = system.redis(), system.keys().partitions[0].meta
    await wait_until(lambda: redis.hexists(meta, "repair"), within=60)
    await redis.aclose()


def outcomes(system: System) -> set[int]:
    """How many outcomes messages have."""
    rows = system.query(
        "SELECT COUNT(*) AS n FROM audit_log WHERE type IN ('Delivered','Failed','MessageDiscarded') "
        "GROUP BY subject"
    )
    return {row["n"] for row in rows}
