"""Prometheus' own checker of rules: the one on PATH, or that of Debian's package, fetched once and only unpacked."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from support import docs

PLACE = docs.ROOT / "var" / "tools"
"""Where it is kept; processes and runs of one checkout share it."""
PACKAGE = "prometheus"
PROGRAM = "usr/bin/promtool"
# A machine without a network must not be waited for.
QUICK = ("-o", "Acquire::http::Timeout=15", "-o", "Acquire::https::Timeout=15", "-o", "Acquire::Retries=1")


class NotObtained(Exception):
    """Why there is no promtool, and how to get one."""


def find(place: Path = PLACE) -> Path:
    """Its path. Raises NotObtained.

    The package is not installed: that would start Prometheus. Needs no rights, as long as apt has its lists.
    """
    try:
        return _found(place)
    except (OSError, subprocess.SubprocessError, tarfile.TarError) as error:
        raise NotObtained(f"There is no promtool, and its package could not be kept: {error}") from error


def _found(place: Path) -> Path:
    if (found := shutil.which("promtool")) is not None:
        return Path(found)
    kept = place / "promtool"
    if not kept.exists():
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise NotObtained("There is no promtool. Install Prometheus so that promtool is on PATH.")
        place.mkdir(parents=True, exist_ok=True)
        with (place / "promtool.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not kept.exists():
                _fetch(kept)
    return kept


def _fetch(kept: Path) -> None:
    with tempfile.TemporaryDirectory(dir=kept.parent) as directory:
        done = _apt("download", PACKAGE, within=directory)
        if done.returncode != 0 and os.geteuid() == 0:
            # A bare machine has no package lists yet.
            _apt("update", within=directory)
            done = _apt("download", PACKAGE, within=directory)
        packages = list(Path(directory).glob("*.deb"))
        if done.returncode != 0 or not packages:
            said = " ".join(done.stdout.split()[-40:])
            command = f"sudo apt-get update && apt-get download {PACKAGE}"
            raise NotObtained(
                f"There is no promtool, and its package could not be fetched: {said} "
                f"Run `{command}`, unpack it with `dpkg-deb -x`, and put {PROGRAM} of it on PATH."
            )
        made = Path(directory) / "promtool"
        _unpack(packages[0], made)
        made.chmod(0o755)
        made.rename(kept)


def _unpack(package: Path, to: Path) -> None:
    """Only this program out of a package that holds others of 100 MB."""
    with (
        subprocess.Popen(("dpkg-deb", "--fsys-tarfile", package), stdout=subprocess.PIPE) as running,
        tarfile.open(fileobj=running.stdout, mode="r|") as members,
    ):
        for member in members:
            if member.name.removeprefix("./") == PROGRAM and (content := members.extractfile(member)):
                with to.open("wb") as written:
                    shutil.copyfileobj(content, written)
    if not to.exists():
        raise NotObtained(f"{package.name} holds no {PROGRAM}.")


def _apt(*words: str, within: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ("apt-get", *QUICK, *words),
        cwd=within,
        env=os.environ | {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=80,
        check=False,
    )
