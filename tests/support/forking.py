"""Roles started by forking a process that has loaded the code already: a start costs no second of imports.

What runs is the same command as a service manager's, in a process of its own, ended by signals like any other.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

PARENT = """
import contextlib, importlib, json, os, signal, sys

for name in ("cli.roles", "cli.common", "bootstrap", "embedded.urls", "projections.queries", "projections.store",
             "services.gateway.role", "services.server.role", "services.delivery.role", "services.projector.role",
             "services.portal.role", "services.ca.signer"):
    with contextlib.suppress(ImportError):  # of another release
        importlib.import_module(f"broker.{name}")
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    asked = json.loads(line)
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(asked["environ"])
    log = os.open(asked["log"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    for number, opened in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
        os.dup2(opened, number)
    from broker.cli import main
    sys.argv = ["broker", *asked["args"]]
    try:
        main()
    except SystemExit as error:
        # Nobody but its parent could be told by the system, and that does not ask.
        print(f"exit {error.code or 0}", file=sys.stderr, flush=True)
        raise
"""


class Forked:
    """A process of a Forker; as much of Popen as is needed."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid = pid
        self._log = log
        self._process: psutil.Process | None = None
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process = psutil.Process(pid)

    def terminate(self) -> None:
        """Ask it to stop."""
        self.send_signal(signal.SIGTERM)

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self._process is not None and self._process.is_running():
            os.kill(self.pid, number)

    def wait(self, timeout: float) -> int:
        """Until it has ended; its exit code. Raises psutil.TimeoutExpired."""
        if self._process is not None:
            self._process.wait(timeout)
        last = self._log.read_text("utf-8", "replace").splitlines()[-1]
        return int(last.removeprefix("exit ")) if last.startswith("exit ") else -1


class Forker:
    """One release's code, loaded once; `environ` lets Python find it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._parent = subprocess.Popen(
            [sys.executable, "-c", PARENT],
            env=os.environ | environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, *args: str, environ: Mapping[str, str], log: Path) -> Forked:
        """`broker ARGS` with exactly this environment, its output added to `log`."""
        stdin, stdout = self._parent.stdin, self._parent.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps({"args": args, "environ": dict(environ), "log": str(log)}) + "\n")
        stdin.flush()
        return Forked(int(stdout.readline()), log)

    def close(self) -> None:
        """End the parent; what it started goes on."""
        self._parent.communicate(timeout=60)
