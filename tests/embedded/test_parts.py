"""What the supervisor is made of: locks, state, ports, plan, logs, probes."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

from broker import bootstrap
from broker.embedded import child, plan, ports, probe, state
from broker.embedded.logs import LogFile, Logs, readable
from broker.embedded.ports import Claim
from broker.embedded.process import EmbeddedError
from broker.errors import SettingsError
from broker.settings import Settings
from support.pki import Pki

HOLDER = """
import sys
from pathlib import Path
from broker.embedded.state import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_runs_on_a_data_directory_are_refused(tmp_path: Path) -> None:
    """The second is told who runs and what to do; a killed holder leaves no lock behind."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        lock = state.RunLock(tmp_path)
        assert lock.held()
        with pytest.raises(EmbeddedError, match=rf"PID {holder.pid}\).*broker down"), state.RunLock(tmp_path):
            pass
        holder.kill()
    assert lock.holder() == holder.pid
    assert not lock.held()
    with state.RunLock(tmp_path) as mine:
        assert mine.holder() == os.getpid()
        assert mine.held()
    assert not state.RunLock(tmp_path).held()


def test_state_is_read_as_written_and_survives_garbage(tmp_path: Path) -> None:
    """A file that is torn or from elsewhere counts as none."""
    (tmp_path / "run").mkdir()
    assert state.read(tmp_path) is None
    written = state.State(pid=1, created=2.0, data_dir="x", members=[state.Member(name="a", role="b")])
    state.save(written, tmp_path)
    assert state.read(tmp_path) == written
    state.state_path(tmp_path).write_text("{")
    assert state.read(tmp_path) is None


def test_a_reused_pid_is_not_the_process() -> None:
    """The start time tells processes apart."""
    mine = psutil.Process().create_time()
    assert state.alive(os.getpid(), mine)
    assert not state.alive(os.getpid(), mine - 60)
    assert not state.alive(None, mine)


def test_a_busy_port_names_setting_and_process() -> None:
    """`port 8001 (gateway_port, BROKER_GATEWAY_PORT) is in use by PID 123 (nginx)`."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EmbeddedError) as caught:
            ports.check([Claim("gateway_port", "127.0.0.1", port), Claim("server_port", "127.0.0.1", 0)])
    name = psutil.Process().name()
    wanted = f"port {port} (gateway_port, BROKER_GATEWAY_PORT) is in use by PID {os.getpid()} ({name})"
    assert wanted in str(caught.value)
    ports.check([Claim("gateway_port", "127.0.0.1", port)])


def test_a_port_asked_for_twice_is_refused() -> None:
    """Two roles on one port would fight for it."""
    port = plan.free_port()
    with pytest.raises(EmbeddedError, match="asked for twice: by gateway_port and server_port"):
        ports.check([Claim("gateway_port", "127.0.0.1", port), Claim("server_port", "127.0.0.1", port)])


def test_the_plan_gives_each_process_a_name_and_a_port(tmp_path: Path) -> None:
    """Gateways share theirs; workers' metrics go to following ports that nobody else uses."""
    settings = plan.with_ports(
        Settings(data_dir=tmp_path, certs_dir=tmp_path, workers=3, gateways=2, gateway_port=0)
    )
    assert settings.gateway_port != 0
    planned = plan.plan(settings)
    assert [one.name for one in planned] == [
        "server",
        "projector",
        "worker-1",
        "worker-2",
        "worker-3",
        "portal",
        "gateway-1",
        "gateway-2",
    ]
    workers = [one for one in planned if one.role == "worker"]
    assert [one.settings.worker_metrics_port for one in workers] == [9100, 9102, 9103]
    assert [one.target.port for one in workers] == [9100, 9102, 9103]
    shared = {one.environ.get("PROMETHEUS_MULTIPROC_DIR") for one in planned if one.role == "gateway"}
    assert shared == {str(tmp_path / "run" / "gateway-metrics")}
    assert {claim.port for claim in plan.claims(settings)} >= {9100, 9101, 9102, 9103}


def test_the_plan_for_inspection_delivers_and_accepts_nothing(tmp_path: Path) -> None:
    """Neither workers nor gateways, and no port of theirs is claimed; roles that reach out refuse by themselves."""
    settings = Settings(
        data_dir=tmp_path,
        certs_dir=tmp_path,
        inspection=True,
        workers=3,
        otlp_url="http://localhost:4318",
        oidc_issuer="https://people.example",
        oidc_client_id="broker",
    )
    assert [one.name for one in plan.plan(settings)] == ["server", "projector", "portal"]
    assert [claim.setting for claim in plan.claims(settings)] == [
        "server_port",
        "portal_port",
        "projector_metrics_port",
    ]
    for role in plan.ROLES:
        if role in plan.INSPECTING:
            quiet = bootstrap.inspected(role, settings)
            assert (quiet.otlp_url, quiet.oidc_issuer) == (None, None)
        else:
            with pytest.raises(SettingsError, match=f"no {role} runs"):
                bootstrap.inspected(role, settings)
    usual = msgspec.structs.replace(settings, inspection=False)
    assert bootstrap.inspected("worker", usual) is usual


def test_logs_are_json_lines_whatever_a_process_says(tmp_path: Path) -> None:
    """JSON is kept and gets the process's name; a traceback's lines become events."""
    shown: list[str] = []
    logs = Logs(tmp_path, shown.append)
    logs.line("worker", "worker-2", b'{"event": "started", "level": "info", "n": 1}')
    logs.line("worker", "worker-2", b"Traceback (most recent call last):\xff")
    logs.line("worker", "worker-2", b"[1]")
    logs.close()
    lines = [json.loads(line) for line in (tmp_path / "worker.log").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["started", "Traceback (most recent call last):�", "[1]"]
    assert {line["process"] for line in lines} == {"worker-2"}
    assert "worker-2" in shown[0]
    assert "started n=1" in shown[0]


def test_a_log_is_rotated_by_size(tmp_path: Path) -> None:
    """Old lines move to `.1`, `.2`; no more than the kept number of files stay."""
    file = LogFile(tmp_path / "x.log", limit=1000, keep=2)
    for number in range(100):
        file.write(msgspec.json.encode({"n": number, "fill": "x" * 80}))
    file.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["x.log", "x.log.1", "x.log.2"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    kept = [
        json.loads(line)["n"]
        for name in ("x.log.2", "x.log.1", "x.log")
        for line in (tmp_path / name).read_text().splitlines()
    ]
    assert kept == list(range(kept[0], 100))


def test_lines_that_found_no_room_are_counted(tmp_path: Path) -> None:
    """A log that cannot be written stops nobody; once it can, it says how many lines are missing."""
    path = tmp_path / "x.log"
    path.mkdir()
    file = LogFile(path)
    file.write(b"{}")
    file.write(b"{}")
    path.rmdir()
    file.write(b'{"event": "back"}')
    file.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert (lines[0]["event"], lines[0]["count"]) == ("log_lines_lost", 2)
    assert lines[1] == {"event": "back"}


def test_readable_lines_show_exceptions() -> None:
    """A traceback in an event is shown below its line."""
    text = readable({"event": "failed", "level": "error", "process": "worker", "exception": "Traceback: x"})
    assert text.splitlines()[0].endswith("worker      error   failed")
    assert text.splitlines()[1] == "Traceback: x"


def portal(settings: Settings) -> probe.Target:
    return next(one.target for one in plan.plan(settings) if one.role == "portal")


async def test_a_portal_s_own_certificate_is_what_is_asked_for(tmp_path: Path) -> None:
    """Whoever signed it; one that is another's, also of our CA, is none of its."""
    ours, theirs = Pki(tmp_path), Pki(tmp_path / "theirs")
    certificate, key = theirs.server
    settings = Settings(
        certs_dir=tmp_path, portal_host="0.0.0.0", portal_certificate=certificate, portal_key=key
    )
    target = portal(settings)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 200 X\r\n\r\n{}")
        writer.close()

    for shown, well in ((theirs.server, True), (ours.server, False)):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*shown)
        async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
            found = await probe.health(target._replace(port=server.sockets[0].getsockname()[1]))
            assert (found.ok, "CERTIFICATE_VERIFY_FAILED" in found.detail) == (well, not well)
            server.close()
    unset = msgspec.structs.replace(settings, portal_certificate=None, portal_key=None)
    assert portal(unset).ca == ours.ca


async def test_probes_say_what_is_not_well() -> None:
    """A 503's failing checks, a closed port and a silent one each give a reason, and lag is read from metrics."""
    answers = {
        b"/health": (503, b'{"checks": {"redis": "unreachable", "log": "ok", "disk": {"status": "full"}}}'),
        b"/well": (200, b"{}"),
        b"/serving": (200, b'{"status": "degraded", "checks": {"log": "ok", "archive": "disk full"}}'),
        b"/metrics": (
            200,
            b'# x\nbroker_lag_events{a="1"} 3\nbroker_lag_events{a="2"} 7.0\nbroker_lag_seconds 0.5\n',
        ),
    }

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readline()).split()[1]
        if path in answers:
            status, body = answers[path]
            writer.write(b"HTTP/1.1 %d X\r\n\r\n%b" % (status, body))
            writer.close()
        else:
            await reader.read()
            writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        ill = await probe.health(probe.Target("127.0.0.1", port, "/health"))
        well = await probe.health(probe.Target("127.0.0.1", port, "/well", metrics="/metrics"))
        serving = await probe.health(probe.Target("127.0.0.1", port, "/serving"))
        silent = await probe.health(probe.Target("127.0.0.1", port, "/silent"), timeout=0.05)
        server.close()
    closed = await probe.health(probe.Target("127.0.0.1", plan.free_port(), "/health"))
    assert ill == probe.Health(ok=False, detail="redis: unreachable, disk: full")
    assert well == probe.Health(ok=True, lag_events=7.0, lag_seconds=0.5)
    assert serving == probe.Health(ok=True, detail="archive: disk full")
    assert silent.detail == "no answer"
    assert closed.detail == "not listening"


def test_a_child_whose_parent_is_gone_does_not_start() -> None:
    """The parent may die before the kernel is asked; then nothing is left behind."""
    command = child.command([sys.executable, "-c", "print('started')"], child.signal.SIGTERM)
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "started\n"
    orphan = [*command[:4], "1", *command[5:]]
    done = subprocess.run(orphan, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
