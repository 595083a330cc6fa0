"""One child process that runs a role of the broker."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import deque
from contextlib import suppress

from broker.embedded import child, probe
from broker.embedded.logs import Logs, readable
from broker.embedded.plan import Planned
from broker.embedded.process import exit_text
from broker.settings import PREFIX, to_environ

LINE_LIMIT = 1024 * 1024


class RoleProcess:
    """Runs `broker <role>` with exactly the planned settings, and keeps the last lines it said."""

    def __init__(self, planned: Planned, logs: Logs) -> None:
        self.planned = planned
        self.name = planned.name
        self.role = planned.role
        self._logs = logs
        self._process: asyncio.subprocess.Process | None = None
        self._pump: asyncio.Task[None] | None = None
        self._last: deque[str] = deque(maxlen=12)

    @property
    def pid(self) -> int | None:
        """The running process's id, None when it does not run."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def returncode(self) -> int | None:
        return None if self._process is None else self._process.returncode

    async def start(self) -> None:
        """Start the process; `probe` tells when it serves."""
        self._last.clear()
        self._process = await asyncio.create_subprocess_exec(
            *child.command([sys.executable, "-P", "-m", "broker", self.role], _death_signal()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environ(),
            # Ctrl-C in the terminal is for the supervisor, which stops roles in order.
            start_new_session=True,
        )
        assert self._process.stdout is not None  # noqa: S101 - asked for above
        self._pump = asyncio.create_task(self._read(self._process.stdout))

    async def wait(self) -> int:
        """Wait until it has ended and all it said is in the log; its exit code."""
        assert self._process is not None  # noqa: S101 - wait comes after start
        code = await self._process.wait()
        if self._pump is not None:
            # A grandchild that holds the pipe open must not hold us up.
            await asyncio.wait({self._pump}, timeout=2)
        return code

    async def stop(self, grace: float) -> None:
        """SIGTERM, then after `grace` seconds SIGKILL."""
        if self._process is None or self.pid is None:
            return
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(grace):
                await self._process.wait()
        except TimeoutError:
            self._logs.event("process_killed", level="warning", process=self.name, grace_seconds=grace)
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    def hurry(self) -> None:
        """End it at once; it is built for that."""
        if self._process is not None and self.pid is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def probe(self) -> probe.Health:
        return await probe.health(self.planned.target)

    def why(self) -> str:
        """How it ended and the last that it said."""
        code = self.returncode
        said = "".join(f"\n  {line}" for line in self._last)
        return (
            f"{self.name} ended with {exit_text(code)}.{said}" if code is not None else f"{self.name} runs."
        )

    def blocked(self) -> str | None:
        """Roles can always be started again."""
        return None

    def _environ(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        settings = to_environ(self.planned.settings)
        # Everything is in the environment: a file edited meanwhile must not reach only some processes.
        ours = {f"{PREFIX}CONFIG": os.devnull, f"{PREFIX}LOG_FORMAT": "json", "PYTHONUNBUFFERED": "1"}
        debug = {name: os.environ[name] for name in (f"{PREFIX}DEBUG",) if name in os.environ}
        return inherited | settings | ours | debug | dict(self.planned.environ)

    async def _read(self, stream: asyncio.StreamReader) -> None:
        rest = b""
        while chunk := await stream.read(65_536):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > LINE_LIMIT:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._take(line)
        self._take(rest)

    def _take(self, line: bytes) -> None:
        if line.strip():
            self._last.append(readable(self._logs.line(self.role, self.name, line)))


def _death_signal() -> signal.Signals:
    """At our death a role ends at once: it is built for that, and its servers go too."""
    return signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL
