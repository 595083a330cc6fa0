"""Keeping a process running: back-off, reset, blocked starts, stopping."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.embedded import keeper as module
from broker.embedded.keeper import Keeper
from broker.embedded.logs import Logs
from broker.embedded.process import EmbeddedError
from broker.embedded.state import Member
from support.programs import Program
from support.waiting import wait_until

FOREVER = "import time; time.sleep(600)"


class Kept:
    """A keeper around `program`, with all that it reports."""

    def __init__(self, program: Program, directory: Path) -> None:
        self.program = program
        self.member = Member(name="program", role="program")
        self.failures: list[BaseException] = []
        self.lines: list[str] = []
        self.logs = Logs(directory, self.lines.append)
        self.keeper = Keeper(
            program, self.member, self.logs, changed=lambda: None, failed=self.failures.append
        )


@pytest.fixture
async def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kept]:
    monkeypatch.setattr(module, "FIRST_WAIT", 0.01)
    made = Kept(Program(FOREVER), tmp_path)
    yield made
    await made.keeper.stop(1)
    made.logs.close()
    assert made.failures == []


async def test_a_killed_process_is_started_again(kept: Kept) -> None:
    """It runs again with another PID, counted, and its end is in the log."""
    await kept.keeper.start()
    first = kept.program.pid
    assert kept.member.pid == first
    await wait_until(lambda: kept.member.health == "ok")
    os.kill(first, signal.SIGKILL)
    await wait_until(lambda: kept.member.restarts == 1 and kept.member.state == "running")
    assert kept.member.pid == kept.program.pid != first
    assert any("process_ended" in line and "ended with -9" in line for line in kept.lines)


async def test_waits_grow_while_it_keeps_ending(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that always ends is started ever more rarely."""
    waits: list[float] = []

    real = module.sleep_or_stop

    async def wait(seconds: float, stop: asyncio.Event) -> bool:
        if seconds < 600:
            waits.append(seconds)
        return await real(seconds, stop)

    monkeypatch.setattr(module, "sleep_or_stop", wait)
    monkeypatch.setattr(module, "PROBE_EVERY", 600.0)
    monkeypatch.setattr(module, "PROBE_EVERY_AT_START", 600.0)
    kept.program.script = ""
    await kept.keeper.start()
    await wait_until(lambda: len(waits) >= 6)
    # Full jitter keeps each wait within half of its step, and the steps double.
    assert all(0.005 * 2**n <= wait <= 0.01 * 2**n for n, wait in enumerate(waits[:6]))


async def test_waits_start_afresh_after_a_healthy_time(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """One crash a day is answered at once, each day."""
    monkeypatch.setattr(module, "HEALTHY_AFTER", 0.0)
    waits: list[float] = []
    real = module.sleep_or_stop

    async def wait(seconds: float, stop: asyncio.Event) -> bool:
        if seconds <= 0.05:
            waits.append(seconds)
        return await real(seconds, stop)

    monkeypatch.setattr(module, "sleep_or_stop", wait)
    kept.program.script = ""
    await kept.keeper.start()
    await wait_until(lambda: kept.member.restarts >= 5)
    assert all(wait <= 0.01 for wait in waits)


async def test_it_is_not_started_while_that_is_in_vain(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a full disk it is not started again and again, the reason is shown, and it goes on by itself."""
    monkeypatch.setattr(module, "BLOCKED_EVERY", 0.01)
    await kept.keeper.start()
    kept.program.no_room = "the disk is full"
    os.kill(kept.program.pid, signal.SIGKILL)
    await wait_until(lambda: kept.member.detail == "the disk is full")
    assert (kept.member.state, kept.program.starts) == ("waiting", 1)
    assert sum("process_blocked" in line for line in kept.lines) == 1
    kept.program.no_room = ""
    await wait_until(lambda: kept.member.state == "running")
    assert kept.program.starts == 2


async def test_a_start_that_fails_later_is_tried_again(kept: Kept) -> None:
    """An error at a restart is shown and retried; the keeper itself goes on."""
    await kept.keeper.start()
    real, failing = kept.program.start, [EmbeddedError("not yet"), OSError(28, "No space left on device")]

    async def start() -> None:
        if failing:
            raise failing.pop(0)
        await real()

    kept.program.start = start
    os.kill(kept.program.pid, signal.SIGKILL)
    await wait_until(lambda: kept.member.state == "running" and kept.member.restarts == 3)
    assert any("not yet" in line for line in kept.lines)
    assert any("No space left" in line for line in kept.lines)


async def test_stopping_while_it_waits_starts_nothing(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop in the middle of a back-off returns, and nothing is started after it."""
    monkeypatch.setattr(module, "FIRST_WAIT", 600.0)
    await kept.keeper.start()
    os.kill(kept.program.pid, signal.SIGKILL)
    await wait_until(lambda: kept.member.state == "waiting")
    await kept.keeper.stop(1)
    assert (kept.member.state, kept.member.pid, kept.program.starts) == ("stopped", None, 1)
