"""What the Linux installer makes of a checkout: a program that stands by itself, with its migrations in it."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from broker.embedded.mariadb import MariaDB
from broker.embedded.valkey import Valkey
from support import databases, docs

TAKEN = ("src", "migrations", "ops", "pyproject.toml", "README.md", "requirements.lock")
PACKAGES = Path(sysconfig.get_path("purelib"))
BUILDING = ("hatchling", "pathspec", "pluggy", "packaging", "trove_classifiers")


def run(*command: str | Path, cwd: Path, umask: int = -1, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("BROKER_", "PYTHON"))}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=clean | environ,
        capture_output=True,
        text=True,
        check=False,
        umask=umask,
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where install.sh put everything, from a copy of the checkout.

    Its packages are those of the tests' environment, so that nothing is fetched: the copy's lock names none. Whoever
    installs keeps new files to themselves, as hardened machines have it for root.
    """
    directory = tmp_path_factory.mktemp("installed")
    checkout, building = directory / "checkout", directory / "building"
    checkout.mkdir()
    building.mkdir()
    for name in TAKEN:
        source = docs.ROOT / name
        if source.is_dir():
            shutil.copytree(source, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, checkout)
    (checkout / "requirements.lock").write_text("")
    for name in BUILDING:
        (building / name).symlink_to(PACKAGES / name)
    made = directory / "root"
    done = run(
        checkout / "ops" / "linux" / "install.sh", "--root", made,
        cwd=directory, umask=0o077, PYTHON=sys.executable, PYTHONPATH=str(building), PIP_NO_INDEX="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # The program has to stand without what it was made from.
    shutil.rmtree(checkout)
    (site,) = (made / "opt" / "broker" / "venv").glob("lib/python*/site-packages")
    (site / "environment.pth").write_text(f"{PACKAGES}\n")
    return made


def test_the_services_user_can_read_all_of_it(root: Path) -> None:
    """Also where root's umask is 077."""
    for path in (root / "opt").rglob("*"):
        needed = stat.S_IROTH | (stat.S_IXOTH if path.is_dir() else 0)
        assert path.is_symlink() or path.stat().st_mode & needed == needed, path


def test_the_program_names_where_it_will_lie(root: Path) -> None:
    """Scripts start with the final interpreter, whatever root they were made in; nothing half made is left."""
    venv = root / "opt" / "broker" / "venv"
    assert [path.name for path in venv.parent.iterdir()] == ["venv"]
    assert (venv / "bin" / "broker").read_text("utf-8").startswith("#!/opt/broker/venv/bin/python")
    # Nothing of the copy or of the place where it was built.
    for script in (venv / "bin").iterdir():
        if not script.is_symlink() and script.read_bytes().startswith(b"#!"):
            assert "venv.new" not in script.read_text("utf-8").splitlines()[0], script.name


def test_it_prepares_servers_from_its_own_migrations(
    root: Path, tmp_path: Path, valkey: Valkey, mariadb: MariaDB
) -> None:
    """Far from any checkout: its version, then an empty database and Redis made ready, and all seven checks pass."""
    venv = root / "opt" / "broker" / "venv"
    url = databases.create(mariadb)
    environ = {
        "BROKER_DATA_DIR": str(tmp_path / "data"),
        "BROKER_CERTS_DIR": str(tmp_path / "data" / "certs"),
        "BROKER_REDIS_URL": valkey.url,
        "BROKER_MYSQL_URL": url,
        "BROKER_LOG_NAME": "t-program",
    }
    # As the script does; its first line is only right below the root.
    program = (venv / "bin" / "python", "-I", venv / "bin" / "broker")
    version = run(*program, "--version", cwd=tmp_path, **environ)
    assert version.stdout.startswith("broker, version "), version.stderr
    prepared = run(*program, "prepare", cwd=tmp_path, **environ)
    assert prepared.returncode == 0, prepared.stderr
    checked = run(*program, "preflight", "--json", cwd=tmp_path, **environ)
    assert checked.returncode == 0, checked.stdout
    found = {one["name"]: one["detail"] for one in json.loads(checked.stdout)["checks"]}
    assert len(found) == 7
    assert str(venv) in found["Project structure"]
    databases.drop(url)
