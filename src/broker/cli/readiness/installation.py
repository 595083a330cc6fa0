"""The installation that the report asks: the one there is, else one that is started for the report alone."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from broker.cli.common import settings_for
from broker.embedded.state import running
from broker.settings import PREFIX, Settings, load

PORTS = ("gateway_port", "server_port", "worker_metrics_port", "projector_metrics_port", "portal_port")
START_SECONDS = 600
"""On a fresh machine MariaDB is fetched first."""
STOP_SECONDS = 120
TAIL = 300


class Asked(NamedTuple):
    """Whom to ask, and in what environment; `problem` where there is nobody."""

    data: Path | None
    environ: Mapping[str, str] | None = None
    said: str = ""
    problem: str = ""

    def settings(self) -> Settings:
        """Those that it runs by. Raises SettingsError."""
        if self.environ is None or self.data is None:
            return settings_for(self.data)
        return load(environ=self.environ, data_dir=self.data, certs_dir=self.data / "certs")


@contextmanager
def to_ask(data: Path | None, echo: Callable[[str], None]) -> Iterator[Asked]:
    """What runs at `data`, or the servers that the settings name; else a system of its own, for the block.

    Raises SettingsError.
    """
    settings = settings_for(data)
    if settings.redis_url is not None or settings.mysql_url is not None or running(settings.data_dir):
        yield Asked(data)
        return
    echo(f"Nothing runs at {settings.data_dir}: preflight and smoke ask a system started for this report.")
    with (
        tempfile.TemporaryDirectory(prefix="broker-report-") as directory,
        _started(Path(directory), echo) as found,
    ):
        yield found


@contextmanager
def _started(data: Path, echo: Callable[[str], None]) -> Iterator[Asked]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    environ |= {f"{PREFIX}{name.upper()}": "0" for name in PORTS} | {f"{PREFIX}CONFIG": os.devnull}
    said = (
        "No installation was running: these were asked of a system that was started for this report, with "
        "`broker up` in a temporary directory, and stopped after it."
    )
    try:
        problem = _broker(environ, START_SECONDS, "up", "--detach", "--data", str(data))
        yield Asked(data, environ, said, f"`broker up` failed: {problem}" if problem else "")
    finally:
        if left := _broker(environ, STOP_SECONDS, "down", "--data", str(data)):
            echo(f"The system started for this report does not stop: {left}")


def _broker(environ: Mapping[str, str], seconds: float, *args: str) -> str:
    """Run a command; what it said when it failed, else nothing."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "broker", *args],
            env=environ,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it took longer than {seconds:.0f} s"
    return "" if done.returncode == 0 else (done.stdout + done.stderr).strip()[-TAIL:] or "it said nothing"
