"""Small real programs to be kept running, and a supervisor's-eye view of them."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import psutil

from broker.embedded.probe import Health


def gone(pid: int) -> bool:
    """Whether the process has ended; one that only waits to be reaped has."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Program:
    """A unit for the keeper: runs `script` with Python. `room` says whether it may be started again."""

    def __init__(self, script: str) -> None:
        self.script = script
        self.name = "program"
        self.starts = 0
        self.no_room = ""
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        self.starts += 1
        self._process = await asyncio.create_subprocess_exec(sys.executable, "-c", self.script)

    async def wait(self) -> int:
        return await self._process.wait()

    async def stop(self, grace: float) -> None:
        if self.pid is not None:
            self._process.terminate()
            await self._process.wait()

    def hurry(self) -> None:
        if self.pid is not None:
            self._process.kill()

    async def probe(self) -> Health:
        return Health(ok=self.pid is not None)

    def why(self) -> str:
        return f"ended with {self._process.returncode}"

    def blocked(self) -> str | None:
        return self.no_room or None


def long_path(base: Path, length: int = 150) -> Path:
    """A directory under `base` whose path is longer than a unix socket's may be."""
    path = base
    while len(str(path)) < length:
        path = path / "a-rather-long-name"
    path.mkdir(parents=True)
    return path
