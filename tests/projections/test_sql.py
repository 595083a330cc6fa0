"""Literals and bulk statements, as the server reads them."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.projections import queries, sql
from broker.projections.store import StoreRejected
from support.databases import connected
from support.examples import examples

DATABASE = settings(
    max_examples=examples(50, 200), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def cursor(mariadb):
    with connected(mariadb.url) as connection, connection.cursor() as opened:
        yield opened


@DATABASE
@given(
    st.text(st.characters(codec="utf-8")) | st.sampled_from(["'", "\\'", "\\", "';--", "\0", "\x1a", "😀\\"])
)
def test_text_comes_back(cursor, value):
    """Any text that UTF-8 can hold is the same text to the server."""
    cursor.execute(f"SELECT {sql.text(value)}")
    assert cursor.fetchone()[0] == value


@DATABASE
@given(st.binary())
def test_bytes_come_back(cursor, value):
    """Any bytes are the same bytes to the server."""
    cursor.execute(f"SELECT {sql.blob(value)}")
    assert cursor.fetchone()[0] == value


@DATABASE
@given(st.integers(min_value=0, max_value=4_102_444_800_000))
def test_times_come_back(cursor, ms):
    """Milliseconds survive the way through DATETIME(3)."""
    cursor.execute(f"SELECT CAST({sql.stamp(ms)} AS DATETIME(3))")
    assert queries.milliseconds(cursor.fetchone()[0]) == ms


def test_lone_surrogates_are_replaced():
    """What no column can hold does not stop a projection."""
    assert sql.text("a\ud800b") == "'a?b'"


def test_hour():
    """The hour of a time, in UTC."""
    at = int(dt.datetime(2026, 11, 22, 13, 59, 59, tzinfo=dt.UTC).timestamp() * 1000)
    assert sql.hour(at) == "'2026-11-22 13:00:00'"


@given(st.lists(st.text(min_size=1, max_size=40), max_size=60), st.integers(min_value=150, max_value=600))
def test_statements_are_cut(rows, limit):
    """Every row is in one statement, in order, and none is too long that could be shorter."""
    lines = [f"({row})" for row in rows]
    found = list(sql.statements(sql.Insert("t", ("a",), lines), limit))
    head = "INSERT INTO t (a) VALUES "
    assert ",".join(statement.removeprefix(head) for statement, _ in found) == ",".join(lines)
    assert sum(count for _, count in found) == len(lines)
    for statement, count in found:
        assert count == 1 or len(statement.encode("utf-8", "replace")) <= limit


async def test_large_batches_respect_the_servers_packet(store):
    """Rows of several megabytes go in as several statements of one transaction."""
    rows = [
        f"('0',{number},0,'Delivered',1,'2026-01-01','a',NULL,NULL,'s',NULL,{sql.blob(bytes(300_000))},'','','')"
        for number in range(20)
    ]
    from broker.projections.audit_log import COLUMNS

    async with store.transaction() as transaction:
        await transaction.apply([sql.Insert("audit_log", COLUMNS, rows)])
    assert (await store.select("SELECT SUM(LENGTH(data)) n FROM audit_log"))[0]["n"] == 6_000_000


async def test_update_of_missing_rows_is_rejected(store):
    """An update whose row is not there rolls the whole transaction back."""
    fillers = [("incarnation", "''"), ("updated_at", "'2000-01-01'"), ("stream", "'0'")]
    update = sql.Update("checkpoints", ("projection", "ms"), ["('nobody',1)"], fillers)
    with pytest.raises(StoreRejected):
        async with store.transaction() as transaction:
            await transaction.apply([update])
    assert await store.select("SELECT * FROM checkpoints") == []
