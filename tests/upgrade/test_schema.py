"""Migrations expand first: the release before this one runs on every schema between its own and ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.script import ScriptDirectory

from broker.embedded.mariadb import MariaDB
from broker.projections import schema
from support import databases, releases
from support.releases import Release


@pytest.fixture
def url(mariadb) -> Iterator[str]:
    made = databases.create(mariadb)
    yield made
    databases.drop(made)


def run(url: str, *statements: str) -> None:
    with databases.connected(url) as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def steps(url: str) -> Iterator[str]:
    """Each revision that is missing, applied alone."""
    revisions = ScriptDirectory(str(schema.folder()))
    current, head = schema.revisions(url)
    for one in reversed(list(revisions.iterate_revisions(head, current or "base"))):
        with schema._connected(url) as connection:
            command.upgrade(schema._config(connection), one.revision)
        yield one.revision


@pytest.fixture(scope="module")
def migrated(before: Release, mariadb: MariaDB) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """A database that the release before made and ours brought up to date; what broke at each step."""
    url = databases.create(mariadb)
    done = before.broker("migrate", BROKER_MYSQL_URL=url)
    assert done.returncode == 0, done.stderr
    old, keys = releases.described(url), releases.unique_keys(url)
    assert {"messages", "audit_log", "users", "clients"} <= set(old)
    found = {}
    for revision in steps(url):
        found[revision] = releases.broken(old, releases.described(url), before)
        found[revision] += releases.keys_lost(keys, releases.unique_keys(url), set(old))
    yield url, found
    databases.drop(url)


def test_what_the_release_before_uses_stays(migrated: tuple[str, dict[str, list[str]]]) -> None:
    """After each migration: its tables, columns and keys are as they were, what is new has a default."""
    url, broken = migrated
    assert {revision: lines for revision, lines in broken.items() if lines} == {}
    current, head = schema.revisions(url)
    assert current == head


def test_the_release_before_leaves_a_newer_schema_alone(
    before: Release, migrated: tuple[str, dict[str, list[str]]]
) -> None:
    """Its `migrate` goes no step back: it finds its schema, or says that this one is of another version."""
    url, _ = migrated
    there = releases.described(url)
    done = before.broker("migrate", BROKER_MYSQL_URL=url)
    assert done.returncode == 0 or "of another version of the broker" in done.stderr
    assert "Traceback" not in done.stderr
    assert releases.described(url) == there


def test_the_rule_finds_what_would_break_the_release_before(url: str, tmp_path: Path) -> None:
    """A column or table away, another type, a new duty, another key: each is named; what nobody uses may go."""
    package = tmp_path / "src" / "broker"
    package.mkdir(parents=True)
    (package / "queries.py").write_text("SELECT used, wide, may FROM t JOIN other", "utf-8")
    release = Release("made up", tmp_path)
    table = "(id INT PRIMARY KEY, used INT, idle INT, wide INT, may INT NULL)"
    run(url, f"CREATE TABLE t {table}", f"CREATE TABLE other {table}", f"CREATE TABLE unused {table}")
    old, keys = releases.described(url), releases.unique_keys(url)
    run(
        url,
        "DROP TABLE unused",
        "ALTER TABLE t DROP COLUMN idle",
        "ALTER TABLE t ADD COLUMN more INT NOT NULL DEFAULT 7",
        "ALTER TABLE t ADD COLUMN maybe INT",
        "ALTER TABLE t ADD COLUMN twice INT AS (id * 2) STORED",
        "CREATE TABLE fresh (id INT PRIMARY KEY)",
    )
    assert releases.broken(old, releases.described(url), release) == []
    assert releases.keys_lost(keys, releases.unique_keys(url), {"t", "other"}) == []
    run(
        url,
        "DROP TABLE other",
        "ALTER TABLE t DROP COLUMN used",
        "ALTER TABLE t MODIFY wide BIGINT",
        "ALTER TABLE t MODIFY may INT NOT NULL",
        "ALTER TABLE t ADD COLUMN duty INT NOT NULL",
        "ALTER TABLE t ADD UNIQUE KEY one (wide)",
    )
    assert sorted(releases.broken(old, releases.described(url), release)) == [
        "other is gone",
        "t.duty is new and has no default",
        "t.may must not be NULL any more",
        "t.used is gone",
        "t.wide is bigint(20) instead of int(11)",
    ]
    assert releases.keys_lost(keys, releases.unique_keys(url), {"t"}) == ["t: the unique key one is another"]
