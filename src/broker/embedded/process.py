"""What the embedded servers share: one process per directory, its lock, its log, its end."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from broker.embedded import child
from broker.errors import BrokerError

LOG_LIMIT = 8 * 1024 * 1024
SOCKET_PATH_LIMIT = 100  # the kernel's is 107 bytes; leave room for suffixes that servers add
LOCK_WAIT = 10.0
DISK_FULL_BYTES = 16 * 1024 * 1024


class EmbeddedError(BrokerError):
    """It could not be started."""

    code = "embedded_server"


class ServerProcess:
    """A server that owns `directory`. It can be started again after it was stopped or killed.

    The lock on the directory is held by the server itself, so that it ends exactly when the server does,
    whatever happens to the process that started it.
    """

    name = "server"

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory).absolute()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The running server's process id, None when it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def returncode(self) -> int | None:
        """How the last run ended; None while it runs or before the first start."""
        return None if self._process is None else self._process.poll()

    @property
    def log_path(self) -> Path:
        return self.directory / f"{self.name}.log"

    async def wait(self) -> int:
        """Wait until the server has ended; its exit code (negative: the signal)."""
        while (code := self.returncode) is None:
            await asyncio.sleep(0.05)
        return code

    async def stop(self, grace: float = 30.0) -> None:
        """Ask the server to finish; after `grace` seconds kill it. Nothing when it does not run."""
        if self._process is None or self.pid is None:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(grace):
                await self._ended()
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """End the server at once, as a crash would, and wait until it is gone."""
        if self._process is None or self.pid is None:
            return
        self._process.kill()
        await self._ended()

    async def reap(self, grace: float = 30.0) -> int | None:
        """End a server that a killed owner left on this directory; its PID, None if there is none."""
        import psutil

        try:
            pid, started = self._pid_path.read_text("ascii").split()
            process = psutil.Process(int(pid))
            if abs(process.create_time() - float(started)) > 1:
                return None
            process.terminate()
        except (OSError, ValueError, psutil.NoSuchProcess):
            return None
        deadline = time.monotonic() + grace
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                process.kill()
            await asyncio.sleep(0.02)
        return int(pid)

    def tail(self, lines: int = 8) -> list[str]:
        """The last lines of the server's log."""
        try:
            with self.log_path.open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - 16_384))
                text = file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return []
        return [line for line in text.splitlines() if line.strip()][-lines:]

    def disk_full(self) -> bool:
        """Whether the disk under the directory has no room left: the usual end of a durable server."""
        return shutil.disk_usage(self.directory).free < DISK_FULL_BYTES

    def why(self) -> str:
        """Why the server ended, for people: its exit code, the disk, its log's last lines."""
        code = self.returncode
        parts = [f"{self.name} ended with {exit_text(code)}." if code is not None else f"{self.name} runs."]
        if self.disk_full():
            parts.append(f"The disk that holds {self.directory} is full; free some space.")
        if lines := self.tail():
            parts.append(f"The end of {self.log_path}:\n  " + "\n  ".join(lines))
        return " ".join(parts)

    @property
    def _pid_path(self) -> Path:
        return self.directory / f"{self.name}.pid"

    def _prepare_directory(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.log_path.exists() and self.log_path.stat().st_size > LOG_LIMIT:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))

    async def _locked(self) -> BinaryIO:
        """The directory's lock, waiting a moment for a server that is just ending. Raises EmbeddedError."""
        if sys.platform == "win32":
            raise EmbeddedError(f"{self.name} does not come with the broker on Windows.")
        import fcntl

        file = (self.directory / f"{self.name}.lock").open("a+b")
        deadline = time.monotonic() + LOCK_WAIT
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    file.close()
                    raise EmbeddedError(f"{self.directory} is in use by {self._holder()}.") from None
                await asyncio.sleep(0.05)
            else:
                return file

    def _holder(self) -> str:
        try:
            return f"PID {self._pid_path.read_text('ascii').split()[0]}"
        except (OSError, IndexError):
            return "another process"

    def _spawn(self, argv: list[str], lock: BinaryIO) -> None:
        """Start `argv` with its output in the log; the lock passes to it. Raises EmbeddedError."""
        import psutil

        with self.log_path.open("ab") as log:
            try:
                self._process = subprocess.Popen(
                    child.command(argv, signal.SIGTERM),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=(lock.fileno(),),
                    # Ctrl-C in the terminal is for the supervisor, which stops servers in order.
                    start_new_session=True,
                    cwd=self.directory,
                )
            except OSError as error:
                raise EmbeddedError(f"{argv[0]}: {error}") from error
        started = psutil.Process(self._process.pid).create_time()
        self._pid_path.write_text(f"{self._process.pid} {started!r}\n", "ascii")

    async def _ended(self) -> None:
        while self.returncode is None:
            await asyncio.sleep(0.01)


def socket_path(directory: Path, name: str) -> Path:
    """Where a server of `directory` puts its socket: there, or, when the path is too long, in a short one.

    The answer depends on `directory` alone, so that every process finds the same. Raises EmbeddedError when
    somebody else owns the short directory.
    """
    path = directory / name
    if len(os.fsencode(path)) <= SOCKET_PATH_LIMIT:
        return path
    short = Path(tempfile.gettempdir()) / f"broker-{sha256(os.fsencode(directory)).hexdigest()[:16]}"
    short.mkdir(mode=0o700, exist_ok=True)
    status = short.lstat()
    if sys.platform != "win32" and (
        status.st_uid != os.getuid() or status.st_mode & 0o077 or short.is_symlink()
    ):
        raise EmbeddedError(
            f"{short} is not a private directory of this user; remove it or choose a shorter path."
        )
    return short / name


def exit_text(code: int) -> str:
    """An exit code for people: a signal by its name."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
