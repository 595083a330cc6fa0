"""`up`, `down`, `status` with every real process: ends, restarts, refusals, order."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from broker.embedded import state
from support import system as systems
from support.programs import gone
from support.system import System, eventually

NAMES = {"valkey", "mariadb", "server", "projector", "worker", "portal", "gateway"}


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One data directory for this module: set up once, started and ended by each test that needs it."""
    system = System(tmp_path_factory.mktemp("up"), grace_period="5")
    try:
        system.up()
        system.down()
        yield system
    finally:
        system.down()


@pytest.fixture
def started(used: System) -> Iterator[System]:
    used.up()
    yield used
    used.down()


def pids(system: System) -> dict[str, int]:
    return {name: one["pid"] for name, one in system.members().items()}


async def test_status_shows_every_process(started: System) -> None:
    """Names, PIDs, health, restarts and lag, as JSON and as a table; exit 0 while all is well."""
    found = started.status()
    assert found["running"]
    assert found["healthy"]
    members = {one["name"]: one for one in found["processes"]}
    assert set(members) == NAMES
    assert all(psutil.pid_exists(one["pid"]) and one["restarts"] == 0 for one in members.values())
    await eventually(lambda: started.members()["projector"]["lag_events"] is not None)
    table = started.run("status")
    assert table.returncode == 0
    assert all(name in table.stdout for name in NAMES)


async def test_killed_processes_come_back(started: System) -> None:
    """A role and both servers, killed at once, are running and healthy again, counted, the others untouched."""
    before = pids(started)
    for name in ("gateway", "valkey", "mariadb"):
        started.kill(name)
    for name in ("gateway", "valkey", "mariadb"):
        await started.back(name, before[name])
    await started.healthy()
    members = started.members()
    assert {name for name in NAMES if members[name]["restarts"] == 1} == {"gateway", "valkey", "mariadb"}
    assert members["server"]["pid"] == before["server"]


async def test_nothing_outlives_a_killed_supervisor(used: System) -> None:
    """SIGKILL of `up` ends all it ran; `status` knows, and the next `up` starts as if nothing had been."""
    used.up()
    running = pids(used)
    os.kill(used.status()["pid"], signal.SIGKILL)
    await eventually(lambda: all(gone(pid) for pid in running.values()), what="the end of all processes")
    found = used.status()
    assert not found["running"]
    assert {one["state"] for one in found["processes"]} == {"stopped"}
    assert used.run("status").returncode == 1
    used.up()
    assert used.status()["healthy"]
    used.down()


async def test_down_stops_in_order(used: System) -> None:
    """The gateway first, the servers last, Valkey the very last; twice is no error."""
    used.up()
    running = pids(used)
    done = used.run("down")
    assert (done.returncode, done.stdout) == (0, "Stopped.\n")
    order = [line.split()[0] for line in done.stderr.splitlines() if line.endswith(" stopped")]
    assert order[0] == "gateway"
    assert all(gone(pid) for pid in running.values())
    again = used.run("down")
    assert again.returncode == 0
    assert "Nothing runs on" in again.stdout
    assert used.status()["phase"] == "stopped"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
async def test_a_signal_ends_the_foreground_cleanly(used: System, number: signal.Signals) -> None:
    """Ctrl-C in a terminal or its closing: everything ends in order, exit 0."""
    command = [sys.executable, "-m", "broker", "up", "--data", str(used.data)]
    process = subprocess.Popen(
        command, env=used.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        await eventually(
            lambda: (found := state.read(used.data)) and found.phase == "running" and found.pid == process.pid
        )
        running = pids(used)
        process.send_signal(number)
        said, _ = await asyncio.to_thread(process.communicate)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "Traceback" not in said
    assert f"https://127.0.0.1:{used.overrides['gateway_port']}" in said
    assert all(gone(pid) for pid in running.values())


async def test_a_busy_port_stops_the_start(used: System) -> None:
    """The port, its setting and the process are named, and nothing is left running."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", int(used.overrides["server_port"])))
        taken.listen()
        done = used.run("up", "--detach")
    assert done.returncode == 1
    wanted = f"port {used.overrides['server_port']} (server_port, BROKER_SERVER_PORT) is in use by PID {os.getpid()}"
    assert wanted in done.stderr
    assert used.status()["phase"] == "failed"
    assert all(one["pid"] is None for one in used.members().values())


async def test_a_set_up_that_fails_stops_what_it_started(used: System) -> None:
    """A keyring that others can read is refused; the servers that were already running are stopped."""
    keyring = used.settings.keyring_path
    keyring.chmod(0o644)
    done = used.run("up", "--detach")
    keyring.chmod(0o600)
    assert done.returncode == 1
    assert "chmod 600" in done.stderr
    assert "Traceback" not in done.stderr
    assert {one["state"] for one in used.members().values()} == {"stopped"}


async def test_a_role_that_does_not_stay_up_fails_the_start(used: System) -> None:
    """`up` says which role, and its last words, instead of trying for ever."""
    key = used.certs / "services" / "server.key"
    right = key.read_bytes()
    key.write_bytes((used.certs / "services" / "gateway.key").read_bytes())
    done = used.run("up", "--detach")
    key.write_bytes(right)
    assert done.returncode == 1
    assert "server" in done.stderr
    assert {one["state"] for one in used.members().values()} == {"stopped"}


async def test_logs_are_json_lines_with_their_process(used: System) -> None:
    """Every line in every role's file names its role and process."""
    for role in ("gateway", "server", "worker", "projector"):
        lines = [json.loads(line) for line in (used.data / "log" / f"{role}.log").read_text().splitlines()]
        assert lines
        assert all(line["role"] == role and line["process"] and line["event"] for line in lines)


async def test_several_gateways_and_workers(tmp_path: Path) -> None:
    """Gateways share the port, each worker has a metrics port; one killed gateway leaves the other serving."""
    with systems.running(tmp_path / "data", "--gateways", "2", "--workers", "2") as system:
        members = system.members()
        assert set(members) == NAMES - {"gateway", "worker"} | {
            "gateway-1",
            "gateway-2",
            "worker-1",
            "worker-2",
        }
        assert members["gateway-1"]["url"] == members["gateway-2"]["url"]
        assert members["worker-1"]["url"] != members["worker-2"]["url"]
        pid = system.kill("gateway-1")
        await eventually(lambda: gone(pid))
        async with system.client(certificate=None) as client:
            assert (await client.get("/api/v1/health")).status_code == 200
        await system.back("gateway-1", pid)
