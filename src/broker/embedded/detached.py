"""`up --detach` and `down`: the supervisor as a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from broker.embedded.process import EmbeddedError
from broker.embedded.state import STOP_ORDER, RunLock, State, alive, created, read
from broker.errors import BrokerError
from broker.settings import PREFIX, Settings, to_environ

POLL = 0.05


class StillStopping(BrokerError):
    """Not everything has stopped yet."""

    code = "still_stopping"


def start(settings: Settings, echo: Callable[[str], None]) -> None:
    """Start it and return once everything runs; `echo` gets its progress. Raises EmbeddedError.

    Where everything runs already, that is all it says.
    """
    running = read(settings.data_dir)
    if running is not None and running.phase == "running" and alive(running.pid, running.created):
        _check_same(settings, running)
        echo(f"Everything runs already (PID {running.pid}); `broker down` stops it.")
        for line in running.summary:
            echo(line)
        return
    with RunLock(settings.data_dir):
        pass
    output = settings.data_dir / "log" / "up.log"
    output.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with output.open("ab") as file:
        offset = file.tell()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "broker", "up", "--detached"],
            env=os.environ | to_environ(settings) | {f"{PREFIX}CONFIG": os.devnull},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _follow(process, settings.data_dir, echo)
    except KeyboardInterrupt:
        echo("Stopping")
        process.terminate()
        process.wait()
        raise
    if process.poll() is not None:
        raise EmbeddedError(_said(output, offset) or f"It ended with {process.returncode}.")


def _check_same(settings: Settings, running: State) -> None:
    """Raises EmbeddedError when others are asked for than those that run: for inspection, other numbers."""
    if running.inspection != settings.inspection:
        how = "for inspection" if running.inspection else "not for inspection"
        raise EmbeddedError(
            f"`up` already runs on {settings.data_dir} (PID {running.pid}), {how}; stop it with "
            "`broker down` first."
        )
    if running.inspection:
        return
    for role, wanted in (("worker", settings.workers), ("gateway", settings.gateways)):
        count = sum(member.role == role for member in running.members)
        if count != wanted:
            raise EmbeddedError(
                f"`up` already runs on {settings.data_dir} (PID {running.pid}) with {role}s = {count}, not "
                f"{wanted}; stop it with `broker down` first."
            )


def stop(settings: Settings, echo: Callable[[str], None]) -> int | None:
    """End the supervisor and all it runs; its PID, None when nothing ran. Raises StillStopping."""
    lock = RunLock(settings.data_dir)
    pid = lock.holder()
    state = read(settings.data_dir)
    # The PID must still be the process that wrote the state: a number alone may be anybody's by now.
    since = state.created if state is not None and state.pid == pid else created(pid) if pid else None
    if not lock.held() or pid is None or not alive(pid, since):
        return None
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 5 * settings.grace_period + 90
    said: set[str] = set()
    while lock.held():
        state = read(settings.data_dir)
        # Two may have ended since the last look.
        for member in sorted(state.members if state else [], key=lambda one: STOP_ORDER.index(one.role)):
            if member.state == "stopped" and member.name not in said:
                said.add(member.name)
                echo(f"{member.name} stopped")
        if time.monotonic() > deadline:
            raise StillStopping(f"PID {pid} goes on; `broker status` shows what it waits for.")
        time.sleep(POLL)
    _wait_for_end(pid)
    return pid


def _follow(process: subprocess.Popen[bytes], data_dir: Path, echo: Callable[[str], None]) -> None:
    """Echo the steps until everything runs or the process has ended."""
    shown = 0
    while process.poll() is None:
        state = read(data_dir)
        if state is not None and state.pid == process.pid:
            for step in state.steps[shown:]:
                echo(step)
            shown = len(state.steps)
            if state.phase == "running":
                for line in state.summary:
                    echo(line)
                return
        time.sleep(POLL)


def _wait_for_end(pid: int) -> None:
    """The lock is freed a moment before the process is gone."""
    since = created(pid)
    deadline = time.monotonic() + 5
    while alive(pid, since) and time.monotonic() < deadline:
        time.sleep(POLL)


def _said(output: Path, offset: int) -> str:
    """The error that the process printed: the text from its last `Error:` on."""
    with output.open("rb") as file:
        file.seek(offset)
        text = file.read().decode("utf-8", "replace").strip()
    # At the start of a line: a process's last words, quoted below, may hold another one.
    return re.split(r"^Error: ", text, flags=re.MULTILINE)[-1].removeprefix(EmbeddedError("").message).strip()
