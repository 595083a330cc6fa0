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

import psutil
import pytest

from broker.embedded import state
from support.programs import gone
from support.system import System, eventually

NAMES = {"valkey", "mariadb", "server", "projector", "worker", "portal", "gateway"}


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One data directory for this module; a start takes ten seconds of a processor, so what runs is left running."""
    system = System(tmp_path_factory.mktemp("up"), grace_period="5")
    try:
        system.furnish()
        system.up()
        yield system
    finally:
        system.down()


SEVERAL = ("--gateways", "2", "--workers", "2")


@pytest.fixture
def started(used: System) -> System:
    """It runs, one process of each role."""
    if not (used.status()["running"] and set(used.members()) == NAMES):
        used.down()
        used.up()
    return used


@pytest.fixture
def stopped(used: System) -> System:
    """It was set up, and nothing runs."""
    used.down()
    return used


def pids(system: System) -> dict[str, int]:
    return {name: one["pid"] for name, one in system.members().items()}


def restarts(system: System) -> dict[str, int]:
    return {name: one["restarts"] for name, one in system.members().items()}


async def test_status_shows_every_process(started: System) -> None:
    """Names, PIDs, health and lag, as JSON and as a table; exit 0 while all is well."""
    found = started.status()
    assert found["running"]
    assert found["healthy"]
    members = {one["name"]: one for one in found["processes"]}
    assert set(members) == NAMES
    assert all(psutil.pid_exists(one["pid"]) for one in members.values())
    await eventually(lambda: started.members()["projector"]["lag_events"] is not None)
    table = started.run("status")
    assert table.returncode == 0
    assert all(name in table.stdout for name in NAMES)


async def test_killed_processes_come_back(started: System) -> None:
    """A role and both servers, killed at once, are running and healthy again, counted, the others untouched."""
    before, counted = pids(started), restarts(started)
    victims = {"gateway", "valkey", "mariadb"}
    for name in victims:
        started.kill(name)
    for name in victims:
        await started.back(name, before[name])
    await started.healthy()
    assert restarts(started) == {name: count + (name in victims) for name, count in counted.items()}
    assert pids(started)["server"] == before["server"]


async def test_nothing_outlives_a_killed_supervisor(started: System) -> None:
    """SIGKILL of `up` ends all it ran; `status` knows, and the next `up` starts as if nothing had been."""
    used, running = started, pids(started)
    os.kill(used.status()["pid"], signal.SIGKILL)
    await eventually(lambda: all(gone(pid) for pid in running.values()), what="the end of all processes")
    found = used.status()
    assert not found["running"]
    assert {one["state"] for one in found["processes"]} == {"stopped"}
    assert used.run("status").returncode == 1
    used.up(*SEVERAL)
    assert used.status()["healthy"]
    assert set(restarts(used).values()) == {0}


async def test_several_gateways_and_workers(used: System) -> None:
    """Gateways share the port, each worker has a metrics port; one killed gateway leaves the other serving."""
    if "gateway-2" not in used.members() or not used.status()["running"]:
        used.down()
        used.up(*SEVERAL)
    members = used.members()
    each = {"gateway-1", "gateway-2", "worker-1", "worker-2"}
    assert set(members) == NAMES - {"gateway", "worker"} | each
    assert members["gateway-1"]["url"] == members["gateway-2"]["url"]
    assert members["worker-1"]["url"] != members["worker-2"]["url"]
    pid = used.kill("gateway-1")
    await eventually(lambda: gone(pid))
    async with used.client(certificate=None) as client:
        assert (await client.get("/api/v1/health")).status_code == 200
    await used.back("gateway-1", pid)


async def test_down_stops_in_order(used: System) -> None:
    """The gateways first, then the other roles, the servers last; twice is no error."""
    if not used.status()["running"]:
        used.up()
    running = pids(used)
    done = used.run("down")
    assert (done.returncode, done.stdout) == (0, "Stopped.\n")
    order = [
        line.split()[0].partition("-")[0] for line in done.stderr.splitlines() if line.endswith(" stopped")
    ]
    assert order[0] == "gateway"
    assert order == sorted(order, key=state.STOP_ORDER.index)
    assert all(gone(pid) for pid in running.values())
    again = used.run("down")
    assert again.returncode == 0
    assert "Nothing runs on" in again.stdout
    assert used.status()["phase"] == "stopped"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
async def test_a_signal_ends_the_foreground_cleanly(stopped: System, number: signal.Signals) -> None:
    """Ctrl-C in a terminal or its closing: everything ends in order, exit 0."""
    command = [sys.executable, "-m", "broker", "up", "--data", str(stopped.data)]
    process = subprocess.Popen(
        command, env=stopped.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        await eventually(
            lambda: (
                (found := state.read(stopped.data)) and found.phase == "running" and found.pid == process.pid
            )
        )
        running = pids(stopped)
        process.send_signal(number)
        said, _ = await asyncio.to_thread(process.communicate)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "Traceback" not in said
    assert f"https://127.0.0.1:{stopped.overrides['gateway_port']}" in said
    assert all(gone(pid) for pid in running.values())


async def test_a_busy_port_stops_the_start(stopped: System) -> None:
    """The port, its setting and the process are named, and nothing is left running."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", int(stopped.overrides["server_port"])))
        taken.listen()
        done = stopped.run("up", "--detach")
    assert done.returncode == 1
    wanted = f"port {stopped.overrides['server_port']} (server_port, BROKER_SERVER_PORT) is in use by PID {os.getpid()}"
    assert wanted in done.stderr
    assert stopped.status()["phase"] == "failed"
    assert all(one["pid"] is None for one in stopped.members().values())


async def test_a_set_up_that_fails_stops_what_it_started(stopped: System) -> None:
    """A keyring that others can read is refused; the servers that were already running are stopped."""
    keyring = stopped.settings.keyring_path
    keyring.chmod(0o644)
    done = stopped.run("up", "--detach")
    keyring.chmod(0o600)
    assert done.returncode == 1
    assert "chmod 600" in done.stderr
    assert "Traceback" not in done.stderr
    assert {one["state"] for one in stopped.members().values()} == {"stopped"}


async def test_a_role_that_does_not_stay_up_fails_the_start(stopped: System) -> None:
    """`up` says which role, and its last words, instead of trying for ever."""
    key = stopped.certs / "services" / "server.key"
    right = key.read_bytes()
    key.write_bytes((stopped.certs / "services" / "gateway.key").read_bytes())
    done = stopped.run("up", "--detach")
    key.write_bytes(right)
    assert done.returncode == 1
    assert "server" in done.stderr
    assert {one["state"] for one in stopped.members().values()} == {"stopped"}


async def test_logs_are_json_lines_with_their_process(used: System) -> None:
    """Every line in every role's file names its role and process."""
    for role in ("gateway", "server", "worker", "projector"):
        lines = [json.loads(line) for line in (used.data / "log" / f"{role}.log").read_text().splitlines()]
        assert lines
        assert all(line["role"] == role and line["process"] and line["event"] for line in lines)
