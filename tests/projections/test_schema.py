"""The migrations."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from broker.errors import SettingsError, StoreUnavailable
from broker.projections import address, schema
from support.databases import connected


def described(url: str) -> dict[str, list[tuple]]:
    """Columns, keys and options of every table but Alembic's own."""
    found: dict[str, list[tuple]] = {}
    with connected(url) as connection, connection.cursor() as cursor:
        for query in (
            """SELECT table_name,column_name,ordinal_position,column_default,is_nullable,column_type,
            character_set_name,collation_name FROM information_schema.columns""",
            """SELECT table_name,index_name,seq_in_index,column_name,sub_part,non_unique
            FROM information_schema.statistics""",
            "SELECT table_name,engine,table_collation,row_format FROM information_schema.tables",
        ):
            cursor.execute(f"{query} WHERE table_schema=DATABASE() ORDER BY 1,2,3")
            for table, *rest in cursor.fetchall():
                if table != "alembic_version":
                    found.setdefault(table, []).append(tuple(rest))
    return found


def run(url: str, script: str) -> None:
    with connected(url) as connection, connection.cursor() as cursor:
        for statement in script.split(";\n"):
            if statement.strip():
                cursor.execute(statement)


def test_migrations_make_the_documented_schema(empty_url, mariadb, session_url):
    """`migrations/schema.sql` and every migration together leave the same tables."""
    documented = (schema.folder() / "schema.sql").read_text("utf-8")
    run(empty_url, documented)
    assert described(session_url) == described(empty_url)


def test_migrating_twice_is_nothing(empty_url):
    """The second run finds nothing to do."""
    assert schema.revisions(empty_url)[0] is None
    schema.migrate(empty_url)
    before = described(empty_url)
    schema.migrate(empty_url)
    current, head = schema.revisions(empty_url)
    assert (current, described(empty_url)) == (head, before)


def test_two_migrate_at_once(empty_url):
    """Two processes that start together leave one schema."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(schema.migrate, [empty_url, empty_url]))
    current, head = schema.revisions(empty_url)
    assert current == head


def test_interrupted_migration_is_finished(empty_url):
    """A run that was killed between a table and its version record goes on at the next start."""
    schema.migrate(empty_url)
    run(empty_url, "UPDATE alembic_version SET version_num='0004'")
    schema.migrate(empty_url)
    current, head = schema.revisions(empty_url)
    assert current == head


def test_each_revision_is_one_statement():
    """MySQL cannot roll DDL back, so no revision holds two statements."""
    for file in sorted(Path(schema.folder(), "versions").glob("*.py")):
        upgrade = file.read_text("utf-8").split("def upgrade")[1].split("def downgrade")[0]
        assert upgrade.count("op.execute") == 1, file.name


def test_database_that_is_away():
    """An unreachable database is a clear error."""
    with pytest.raises(StoreUnavailable):
        schema.migrate("mysql://u:p@127.0.0.1:1/message_system")


@pytest.mark.parametrize(
    "url",
    ["mysql://u:secret@h/", "postgres://u:secret@h/d", "mysql://u:secret@h:x/d", "mysql://u:secret@h/d?a=b"],
)
def test_address_that_is_none(url):
    """A URL that cannot be used is refused, without showing its password."""
    with pytest.raises(SettingsError) as error:
        address.parse(url)
    assert "secret" not in str(error.value)


def test_password_is_not_shown():
    """An address in a log line or traceback keeps its password to itself."""
    place = address.parse("mysql://u:p%40ss@h:3307/d?unix_socket=/s")
    assert (place.password, place.port, place.unix_socket) == ("p@ss", 3307, "/s")
    assert "p@ss" not in repr(place)
