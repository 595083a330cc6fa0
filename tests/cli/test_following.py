"""A command that changed the registry ends when every running process goes by it, or names those that do not."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import msgspec
import pytest

from broker import clock
from broker.cli import following
from broker.embedded import state
from broker.settings import load
from support import log
from support.system import System, eventually

LATE = "not every process goes by it"


def change(system: System, *args: str) -> str:
    """A command that succeeds; what it said on stderr."""
    done = system.run(*args)
    assert done.returncode == 0, done.stderr
    return done.stderr


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_what_was_changed_counts_at_once(system: System) -> None:
    """Issued and used, revoked and refused, with nothing between; only where a command says so it may be later."""
    message = {"sender_number": "+4915200000000", "message_body": "Hello"}
    told = change(system, "client", "register", "swift")
    for _ in range(4):
        told += change(system, "cert", "issue", "swift")
        async with system.client("clients/swift/client") as client:
            sent = await client.post("/api/v1/messages", json=message)
            assert sent.status_code == 202 or LATE in told, sent.text
            told += change(system, "cert", "revoke", "swift", "--reason", "superseded")
            refused = await client.post("/api/v1/messages", json=message)
            assert "certificate_revoked" in refused.text or LATE in told
    assert LATE in told or told == ""


async def test_who_hangs_is_named(system: System) -> None:
    """A frozen process, and one of another machine that says nothing new; not one that was killed. Exit 0."""
    redis, keys = system.redis(), system.keys().control
    killed = subprocess.Popen(["true"])
    killed.wait()
    names = ["gateway@elsewhere:7:ab", f"worker@{socket.gethostname()}:{killed.pid}:cd"]
    portal = system.members()["portal"]["pid"]
    seconds, _ = await redis.time()
    for name in names:
        await redis.hset(keys.key_holders, name, f"{(seconds + 3600) * 1000}|m-1")
        await redis.hset(keys.followers, name, "")
    try:
        with frozen(portal):
            told = change(system, "client", "register", "unheard")
            assert LATE in told
            assert f"portal (PID {portal})" in told
            assert "gateway (PID 7 on elsewhere)" in told
            assert str(killed.pid) not in told
            assert change(system, "client", "route", "unheard", "inbox", "--no-wait") == ""
    finally:
        await redis.hdel(keys.key_holders, *names)
        await redis.hdel(keys.followers, *names)
    await eventually(lambda: change(system, "client", "route", "unheard", "inbox") == "", what="all follow")
    await system.healthy()
    await redis.aclose()


@pytest.fixture
async def tools(redis, log_name: str, tmp_path) -> SimpleNamespace:
    """A log that no process follows."""
    keys, _ = await log.create(redis, log_name)
    (tmp_path / "run").mkdir()
    return SimpleNamespace(redis=redis, keys=keys, settings=load(environ={}, data_dir=tmp_path))


async def test_nobody_runs_nobody_is_waited_for(tools) -> None:
    """Without a process the first look is enough."""
    assert await following.behind(tools, 3600) == []


async def test_a_process_that_has_long_said_nothing_is_named(tools) -> None:
    """What `up` runs and still is there counts, whatever it says; what it restarts or stops does not."""
    pid = os.getpid()
    this = {"pid": pid, "created": state.created(pid)}
    members = [
        state.Member(name="portal", role="portal", state="running", **this),
        state.Member(name="projector", role="projector", state="running", **this),
        state.Member(name="worker", role="worker", state="waiting"),
    ]
    running = state.State(**this, data_dir=str(tools.settings.data_dir), phase="running", members=members)
    state.save(running, tools.settings.data_dir)
    assert await following.behind(tools, 0) == [f"portal (PID {pid})"]
    state.save(msgspec.structs.replace(running, phase="stopping"), tools.settings.data_dir)
    assert await following.behind(tools, 3600) == []


async def holds(tools: SimpleNamespace, name: str) -> None:
    """A process that is there, of a version that says nothing more."""
    seconds, _ = await tools.redis.time()
    await tools.redis.hset(tools.keys.control.key_holders, name, f"{(seconds + 3600) * 1000}|m-1")


async def test_a_machine_with_another_name_since(tools) -> None:
    """⚠ What `up` runs is known by its number: its processes go on saying the name that the machine had."""
    pid = os.getpid()
    this = {"pid": pid, "created": state.created(pid)}
    member = state.Member(name="portal", role="portal", state="running", **this)
    running = state.State(**this, data_dir=str(tools.settings.data_dir), phase="running", members=[member])
    state.save(running, tools.settings.data_dir)
    name = f"portal@before.example:{pid}:ab"
    await holds(tools, name)
    await tools.redis.hset(tools.keys.control.followers, name, "9999999999999-0")
    assert await following.behind(tools, 0) == []


async def test_an_older_version_beside_is_given_its_time(tools) -> None:
    """⚠ It does not say how far it is: nobody is named, and it has heard of it, or serves nobody, by the end."""
    await holds(tools, "gateway@elsewhere:7:ab")
    tools.settings = msgspec.structs.replace(tools.settings, trust_max_age=0.2, trust_poll=0.1)
    began = clock.monotonic()
    assert await following.behind(tools, 0) == []
    assert clock.monotonic() - began >= 0.3


async def test_an_interrupted_wait_loses_nothing(tools, monkeypatch, capsys) -> None:
    """Ctrl-C ends the wait only: a password shown once is shown."""
    begun = asyncio.Event()

    async def endless(*_: object) -> list[str]:
        begun.set()
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(following, "behind", endless)
    settling = asyncio.create_task(following._settle(tools))
    await begun.wait()
    settling.cancel()
    assert await settling is None
    assert "Recorded; not waited" in capsys.readouterr().err
