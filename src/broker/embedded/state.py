"""What `up` tells other commands: `run/state.json` and the lock that shows whether it runs."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self

import msgspec

from broker import directories
from broker.embedded.process import EmbeddedError

Phase = Literal["starting", "running", "stopping", "stopped", "failed"]
STOP_ORDER = ("gateway", "portal", "worker", "projector", "server", "mariadb", "valkey")
"""The gateway first, so that nothing new comes in; the servers last, as all others need them."""


class Member(msgspec.Struct, kw_only=True):
    """One supervised process; `created`, its start time, makes sure that a PID is still that process."""

    name: str
    role: str
    pid: int | None = None
    created: float | None = None
    state: Literal["starting", "running", "waiting", "stopped"] = "starting"
    restarts: int = 0
    health: Literal["ok", "failing", "unknown"] = "unknown"
    detail: str = ""
    lag_events: float | None = None
    lag_seconds: float | None = None
    url: str | None = None


class State(msgspec.Struct, kw_only=True):
    """Everything `status` shows. `created` belongs to the supervisor's own `pid`."""

    pid: int
    created: float
    data_dir: str
    phase: Phase = "starting"
    inspection: bool = False
    """Nothing is accepted or delivered."""
    error: str = ""
    steps: list[str] = []
    summary: list[str] = []
    members: list[Member] = []


def state_path(data_dir: Path) -> Path:
    return data_dir / "run" / "state.json"


def save(state: State, data_dir: Path) -> None:
    """Replace the file as a whole. Raises OSError, on a full disk for one."""
    path = state_path(data_dir)
    partial = path.with_suffix(".new")
    partial.write_bytes(msgspec.json.encode(state))
    partial.replace(path)


def read(data_dir: Path) -> State | None:
    """The last state that was written; None when there is none that can be read."""
    try:
        return msgspec.json.decode(state_path(data_dir).read_bytes(), type=State)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None


def created(pid: int) -> float | None:
    """When the process was started, None when there is none."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.NoSuchProcess:
        return None


def alive(pid: int | None, since: float | None) -> bool:
    """Whether that very process still runs, not another one that got its PID."""
    if pid is None or since is None:
        return False
    started = created(pid)
    return started is not None and abs(started - since) < 1


def running(data_dir: Path) -> State | None:
    """The state of the `up` that runs on the data directory now, None when none does."""
    state = read(data_dir)
    return state if state is not None and alive(state.pid, state.created) else None


class RunLock:
    """Held by `up` while it runs on a data directory; the system frees it however the process ends."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.path = data_dir / "run" / "up.lock"
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        """Take it. Raises EmbeddedError that names the holder."""
        try:
            self.path.parent.mkdir(mode=directories.mode(), parents=True, exist_ok=True)
            file = self.path.open("a+b")
        except OSError as error:
            raise self._unusable(error) from error
        try:
            _lock(file)
        except OSError:
            file.close()
            raise EmbeddedError(
                f"`up` already runs on {self.data_dir} (PID {self.holder() or 'unknown'}): "
                "`broker status` shows it, `broker down` stops it."
            ) from None
        self._file = file
        # The PID lies beside the lock: a locked file cannot be read on Windows.
        try:
            self._pid_path.write_text(str(os.getpid()), "ascii")
        except OSError as error:
            file.close()
            raise self._unusable(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pid_path.unlink(missing_ok=True)
        if self._file is not None:
            self._file.close()

    def held(self) -> bool:
        """Whether some process holds it now."""
        if not self.path.exists():
            return False
        with self.path.open("a+b") as file:
            try:
                _lock(file)
            except OSError:
                return True
        return False

    def holder(self) -> int | None:
        """The PID that the holder wrote."""
        try:
            return int(self._pid_path.read_text("ascii"))
        except (FileNotFoundError, ValueError):
            return None

    def _unusable(self, error: OSError) -> EmbeddedError:
        if error.errno == errno.ENOSPC:
            return EmbeddedError(f"The disk that holds {self.data_dir} is full. Free some space.")
        return EmbeddedError(
            f"The data directory {self.data_dir} cannot be used: {error.strerror} ({error.filename}). "
            "Let this user write there, or choose another with --data or data_dir (BROKER_DATA_DIR)."
        )

    @property
    def _pid_path(self) -> Path:
        return self.path.with_name("up.pid")


def _lock(file: IO[bytes]) -> None:
    if sys.platform == "win32":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
