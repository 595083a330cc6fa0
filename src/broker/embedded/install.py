"""Find MariaDB's programs, and install them where that can be done without asking anybody."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from broker.embedded.process import EmbeddedError

PACKAGES = ("mariadb-server-core", "mariadb-client-core")
INSTALL = ("apt-get", "install", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300", *PACKAGES)
# A user's PATH often lacks these.
EXTRA_PATH = ("/usr/sbin", "/usr/local/sbin", "/usr/libexec", "/opt/homebrew/bin", "/usr/local/bin")


def mariadb_programs() -> tuple[Path, Path]:
    """The paths of mariadbd and mariadb-install-db. Raises EmbeddedError that says how to get them."""
    server = _which("mariadbd") or _which("mysqld")
    install_db = _which("mariadb-install-db") or _which("mysql_install_db")
    # Oracle's mysqld comes without an install-db script and is not what this module drives.
    if server is None or install_db is None:
        raise EmbeddedError(f"MariaDB is not installed. {_advice()}")
    return server, install_db


def ensure_mariadb(progress: Callable[[str], None] = lambda _line: None) -> None:
    """Install MariaDB's programs if they are missing, as root on Debian or Ubuntu; else EmbeddedError.

    The packages carry no system service: nothing is started or enabled.
    """
    try:
        mariadb_programs()
    except EmbeddedError:
        if not _may_install():
            raise
    else:
        return
    progress("Installing MariaDB (apt-get)")
    if _apt(INSTALL).returncode != 0:
        # A bare machine has no package lists yet.
        progress("Refreshing the package lists (apt-get update)")
        _apt(("apt-get", "update"))
        progress("Installing MariaDB (apt-get)")
        done = _apt(INSTALL)
        if done.returncode != 0:
            last = "\n  ".join(done.stdout.strip().splitlines()[-12:])
            raise EmbeddedError(f"`{' '.join(INSTALL)}` failed:\n  {last}\n{_advice()}")
    mariadb_programs()


def _which(name: str) -> Path | None:
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(EXTRA_PATH))
    return Path(found) if found else None


def _may_install() -> bool:
    return sys.platform == "linux" and os.geteuid() == 0 and shutil.which("apt-get") is not None


def _apt(argv: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def _advice() -> str:
    own = "or set BROKER_MYSQL_URL to a MySQL 8 or MariaDB 10.6+ of your own"
    if sys.platform == "win32":
        return "Set BROKER_MYSQL_URL to a MySQL 8 or MariaDB 10.6+ of your own."
    if shutil.which("apt-get"):
        return f"Run `sudo apt-get install -y --no-install-recommends {' '.join(PACKAGES)}`, {own}."
    if sys.platform == "darwin":
        return f"Run `brew install mariadb`, {own}."
    if shutil.which("dnf"):
        return f"Run `sudo dnf install -y mariadb-server`, {own}."
    return f"Install mariadbd and mariadb-install-db with your package manager, {own}."
