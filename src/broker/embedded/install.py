"""Find MariaDB's programs and a browser, and install them where that can be done without asking anybody."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from broker.embedded.process import EmbeddedError

PACKAGES = ("mariadb-server-core", "mariadb-client-core")
BROWSER_PACKAGES = ("chromium",)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# What a few tests look at besides; where it cannot be had, those parts are said not to be shown.
HELPERS = {"systemd-analyze": "systemd", "node": "nodejs"}
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
    _ensure(mariadb_programs, "MariaDB", PACKAGES, _advice, progress)


def browser() -> Path:
    """The path of a Chromium, for the tests of the portal. Raises EmbeddedError that says how to get one."""
    for name in BROWSERS:
        if (found := _which(name)) is not None:
            return found
    raise EmbeddedError(f"Chromium is not installed. {_browser_advice()}")


def ensure_browser(progress: Callable[[str], None] = lambda _line: None) -> None:
    """As `ensure_mariadb`, for the browser."""
    _ensure(browser, "Chromium", BROWSER_PACKAGES, _browser_advice, progress)


def missing_helpers() -> dict[str, str]:
    """The programs of HELPERS that are not here, each with how to get it."""
    apt = shutil.which("apt-get") is not None
    return {
        program: f"Run `sudo apt-get install -y --no-install-recommends {package}`."
        if apt
        else f"Install {package} with your package manager, where it has one."
        for program, package in HELPERS.items()
        if _which(program) is None
    }


def ensure_helpers(progress: Callable[[str], None] = lambda _line: None) -> None:
    """As `ensure_mariadb`, for HELPERS; one that cannot be had is said, and no error."""
    for program in missing_helpers():
        package = HELPERS[program]
        try:
            _ensure(partial(_helper, program), package, (package,), lambda: "", progress)
        except EmbeddedError as error:
            progress(str(error).rstrip())


def _helper(program: str) -> None:
    advice = missing_helpers().get(program)
    if advice is not None:
        raise EmbeddedError(f"{program} is not installed; what the tests show with it is left out. {advice}")


def _ensure(
    find: Callable[[], object],
    what: str,
    packages: tuple[str, ...],
    advice: Callable[[], str],
    progress: Callable[[str], None],
) -> None:
    try:
        find()
    except EmbeddedError:
        if not _may_install():
            raise
    else:
        return
    command = _command(packages)
    progress(f"Installing {what} (apt-get)")
    if _apt(command).returncode != 0:
        # A bare machine has no package lists yet.
        progress("Refreshing the package lists (apt-get update)")
        _apt(("apt-get", "update"))
        progress(f"Installing {what} (apt-get)")
        done = _apt(command)
        if done.returncode != 0:
            last = "\n  ".join(done.stdout.strip().splitlines()[-12:])
            raise EmbeddedError(f"`{' '.join(command)}` failed:\n  {last}\n{advice()}")
    find()


def _command(packages: tuple[str, ...]) -> tuple[str, ...]:
    options = ("-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300")
    return ("apt-get", "install", *options, *packages)


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


def _browser_advice() -> str:
    if shutil.which("apt-get"):
        return f"Run `sudo apt-get install -y --no-install-recommends {' '.join(BROWSER_PACKAGES)}`."
    return f"Install it so that one of {', '.join(BROWSERS)} is on PATH."
