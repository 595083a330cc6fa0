"""The machine and the versions that a report is about."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path
from typing import Final

from broker import __version__

HARDWARE: Final = ("Processor", "Memory", "Disk", "Network")
SERVERS: Final = ("Valkey or Redis", "MySQL or MariaDB")
"""The programs on this machine, which the suites start where no other is set."""
APPLICATION: Final = "Gateway, server, worker, projector, portal"


def environment(root: Path) -> dict[str, str]:
    """For the report: hardware, operating system, servers, and what of the broker was tested."""
    import psutil

    disk = shutil.disk_usage(root)
    return {
        "Processor": f"{_processor()}, {psutil.cpu_count() or 1} cores",
        "Memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "Disk": f"{disk.total / 2**30:.0f} GiB, {disk.free / 2**30:.0f} GiB free",
        "Network": "loopback: every process of the suites runs on this machine",
        "Operating system": platform.platform(),
        "Python": platform.python_version(),
        SERVERS[0]: _version(_valkey()),
        SERVERS[1]: _version(_mariadb()),
        APPLICATION: f"{__version__}{_commit(root)}",
    }


def _processor() -> str:
    """Its name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({platform.machine()})" if names else platform.machine()


def _commit(root: Path) -> str:
    """The commit that is checked out, and whether files differ from it."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--tags", "--always", "--dirty=, changed since"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return f" (commit {done.stdout.strip()})" if done.returncode == 0 else ""


def _valkey() -> str:
    from broker.embedded import valkey
    from broker.embedded.process import EmbeddedError

    try:
        return str(valkey.binary())
    except EmbeddedError:
        return "redis-server"


def _mariadb() -> str:
    from broker.embedded.install import mariadb_programs
    from broker.embedded.process import EmbeddedError

    try:
        return str(mariadb_programs()[0])
    except EmbeddedError:
        return "mysqld"


def _version(program: str) -> str:
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=False)
    except OSError:
        return "not found on this machine"
    return done.stdout.strip().partition("\n")[0].replace(program, Path(program).name)
