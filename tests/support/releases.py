"""The release before this one: its code beside ours, on one log and one database, with the packages of this checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

from support import databases
from support.docs import ROOT
from support.forking import Forker
from support.installation import Installation

PARTS = ("src", "migrations", "tests/events/samples")


class Release(NamedTuple):
    """A source tree to run roles from; `name` as git knows it."""

    name: str
    root: Path

    @property
    def environ(self) -> dict[str, str]:
        """Lets Python find this release's code before the installed one."""
        return {"PYTHONPATH": str(self.root / "src")}

    def broker(self, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """A command of this release."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
        return subprocess.run(
            [sys.executable, "-m", "broker", *args],
            env=clean | self.environ | environ,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def python(self, program: str, *args: str) -> str:
        """What a program prints that imports this release's code."""
        done = subprocess.run(
            [sys.executable, "-c", program, *args],
            env=os.environ | self.environ,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def mentions(self, word: str) -> bool:
        """Whether its code says this word anywhere."""
        found = re.compile(rf"\b{re.escape(word)}\b")
        package = self.root / "src" / "broker"
        files = [path for path in package.rglob("*") if path.suffix in {".py", ".lua", ".html"}]
        return any(found.search(path.read_text("utf-8")) for path in files)


OURS = Release("the working tree", ROOT)


def git(*args: str) -> str | None:
    """What git says of this checkout; None where there is no git or no such thing."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *args], capture_output=True, text=True, timeout=60, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def newest() -> str:
    """The newest release before what is checked out, by its tag; the checkout itself where there is none."""
    tag = git("describe", "--tags", "--abbrev=0", "--match", "v[0-9]*", "HEAD^")
    return tag or "HEAD"


def extract(name: str, directory: Path) -> Release:
    """The sources of a commit, without touching the checkout. A tree without git stands for its own past."""
    directory.mkdir(parents=True)
    known = git("rev-parse", "--verify", f"{name}^{{commit}}") is not None
    assert known or name == "HEAD", f"--from {name}: git knows no such release here"
    if not known:
        for part in PARTS:
            shutil.copytree(ROOT / part, directory / part, ignore=shutil.ignore_patterns("__pycache__"))
        return Release(OURS.name, directory)
    archive = directory / "release.tar"
    assert git("archive", f"--output={archive}", name, *PARTS) is not None, f"{name} has not {PARTS}"
    with tarfile.open(archive) as tar:
        # Early 3.11 knows no filters; git's own archive needs none.
        tar.extractall(directory, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))  # noqa: S202
    archive.unlink()
    return Release(git("describe", "--tags", "--always", name) or name, directory)


class Mixed(Installation):
    """An installation whose roles may be of different releases; each release's code is loaded once."""

    def __init__(self, data: Path, *, redis_url: str, mysql_url: str, log_name: str) -> None:
        super().__init__(data, redis_url=redis_url, mysql_url=mysql_url, log_name=log_name)
        self._forkers: dict[Release, Forker] = {}

    def start(self, role: str) -> None:
        """With our own code."""
        self.start_of(OURS, role)

    def start_of(self, release: Release, *roles: str) -> None:
        """Start roles with a release's code."""
        forker = self.forker(release)
        for role in roles:
            log = self.data / "log" / f"{role}.log"
            self.running[role] = forker.start(role, environ=self.surroundings(), log=log)

    def forker(self, release: Release = OURS) -> Forker:
        """What starts commands of a release."""
        if release not in self._forkers:
            self._forkers[release] = Forker(release.environ)
        return self._forkers[release]

    def stop_all(self) -> None:
        """All told at once, then waited for."""
        for process in self.running.values():
            process.terminate()
        for role in list(self.running):
            self.stop(role)

    def close(self) -> None:
        """Nothing of it runs any more."""
        self.stop_all()
        while self._forkers:
            self._forkers.popitem()[1].close()


class Column(NamedTuple):
    """A table's column as far as those care who read and write it."""

    type: str
    nullable: bool
    default: str | None
    extra: str


Described = dict[str, dict[str, Column]]


def described(url: str) -> Described:
    """Every table's columns."""
    found: Described = {}
    with databases.connected(url) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT table_name, column_name, column_type, is_nullable, column_default, extra "
            "FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name <> 'alembic_version'"
        )
        for table, column, kind, nullable, default, extra in cursor.fetchall():
            found.setdefault(table, {})[column] = Column(kind, nullable == "YES", default, extra)
    return found


def unique_keys(url: str) -> dict[tuple[str, str], tuple[str, ...]]:
    """Columns of each unique key, by table and name."""
    found: dict[tuple[str, str], list[str]] = {}
    with databases.connected(url) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT table_name, index_name, column_name FROM information_schema.statistics "
            "WHERE table_schema = DATABASE() AND non_unique = 0 AND table_name <> 'alembic_version' "
            "ORDER BY table_name, index_name, seq_in_index"
        )
        for table, key, column in cursor.fetchall():
            found.setdefault((table, key), []).append(column)
    return {name: tuple(columns) for name, columns in found.items()}


def broken(before: Described, after: Described, release: Release) -> list[str]:
    """What the code of `release`, made for `before`, would miss or stumble over in `after`."""
    found = []
    for table, columns in before.items():
        if table not in after:
            if release.mentions(table):
                found.append(f"{table} is gone")
            continue
        found += _columns(table, columns, after[table], release)
    return found


def _columns(table: str, before: dict[str, Column], after: dict[str, Column], release: Release) -> list[str]:
    found = []
    for name, column in before.items():
        now = after.get(name)
        if now is None:
            if release.mentions(name):
                found.append(f"{table}.{name} is gone")
        elif now.type != column.type:
            found.append(f"{table}.{name} is {now.type} instead of {column.type}")
        elif column.nullable and not now.nullable:
            found.append(f"{table}.{name} must not be NULL any more")
    for name in after.keys() - before.keys():
        column = after[name]
        filled = column.nullable or column.default is not None or "GENERATED" in column.extra.upper()
        if not filled:
            found.append(f"{table}.{name} is new and has no default")
    return found


def keys_lost(
    before: dict[tuple[str, str], tuple[str, ...]],
    after: dict[tuple[str, str], tuple[str, ...]],
    tables: set[str],
) -> list[str]:
    """Unique keys of tables of before that differ: upserts go by them, and a new one refuses what was right."""
    old = {name: columns for name, columns in before.items() if name[0] in tables}
    new = {name: columns for name, columns in after.items() if name[0] in tables}
    changed: set[Any] = {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
    return [f"{table}: the unique key {key} is another" for table, key in sorted(changed)]
