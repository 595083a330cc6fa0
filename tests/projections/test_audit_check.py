"""The table `audit_log` against the log: whatever is done to a row is found and named, what is right never blamed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.cli import verify
from broker.errors import StoreUnavailable
from broker.events import chain, digests, exported_check
from broker.events.exported_walk import HistoryAltered
from broker.events.positions import Position, start
from broker.projections import audit_check, audit_log, checkpoints
from broker.projections.audit_check import TableAltered
from broker.projections.audit_log import AuditLog
from broker.projections.store import Store
from support import databases, histories, readmodels
from support.audits import Audited
from support.waiting import wait_until

SHOWN = [name for name in audit_log.COLUMNS if name not in {"stream", "ms", "seq"}]


class Tables:
    """A history with digests, its audit log, and whoever can write the table."""

    def __init__(self, audited: Audited, store: Store, connection: Any) -> None:
        self.audited, self.store, self._connection = audited, store, connection
        self._loop = asyncio.get_running_loop()
        self.rows: list[dict[str, Any]] = []

    async def apply(self) -> None:
        """Project everything there is."""
        streams = self.audited.keys.streams
        runners = [
            readmodels.runner(
                self.audited.redis, keys, self.audited.identity, self.store, projections=[AuditLog()]
            )
            for keys in streams
        ]
        async with readmodels.running(*runners):
            for keys in streams:
                newest = (
                    (await self.audited.redis.xrevrange(keys.events, count=1))[0][0].decode().partition("-")
                )
                last = Position(keys.stream, int(newest[0]), int(newest[2]))
                await wait_until(lambda last=last: readmodels.reached(self.store, last, ["audit_log"]))
        self.rows = self.every()

    async def checked(self) -> dict[str, Any]:
        """What `events verify --live` finds. Raises TableAltered, HistoryAltered."""
        known = digests.chained(await self.audited.signed())
        report: dict[str, Any] = {"streams": {}, "rows": {}}
        await audit_check.check_streams(self.store, self.audited.source.streams)
        for stream in self.audited.source.streams:
            await verify._stream(self.audited.source, self.store, known, stream, report)
        return report

    def found(self) -> BaseException | None:
        """The same of a property, which runs in a thread of its own."""
        future = asyncio.run_coroutine_threadsafe(self.checked(), self._loop)
        return future.exception()

    def every(self) -> list[dict[str, Any]]:
        with self._connection.cursor() as cursor:
            columns = ",".join(audit_log.COLUMNS)
            cursor.execute(f"SELECT {columns} FROM audit_log ORDER BY stream,ms,seq")
            return [dict(zip(audit_log.COLUMNS, row, strict=True)) for row in cursor.fetchall()]

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Make the table just these rows: those that differ are replaced."""
        place = ("stream", "ms", "seq")
        before = {tuple(row[name] for name in place): row for row in self.every()}
        after = {tuple(row[name] for name in place): row for row in rows}
        with self._connection.cursor() as cursor:
            for key in before.keys() - after.keys():
                cursor.execute("DELETE FROM audit_log WHERE stream=%s AND ms=%s AND seq=%s", key)
            for key, row in after.items():
                if before.get(key) != row:
                    marks = ",".join(["%s"] * len(row))
                    cursor.execute(
                        f"REPLACE INTO audit_log ({','.join(row)}) VALUES ({marks})", list(row.values())
                    )


@pytest.fixture
async def tables(redis, log_name: str, tmp_path: Path, store: Store, url: str) -> AsyncIterator[Tables]:
    audited = await Audited(redis, log_name, tmp_path).create()
    await audited.lived()
    with databases.connected(url) as connection:
        found = Tables(audited, store, connection)
        await found.apply()
        yield found


async def test_from_a_digest_on(tables: Tables) -> None:
    """What came after a digest is checked as in a check of everything; what came before is not looked at."""
    await tables.audited.lived()
    await tables.apply()
    source, known = tables.audited.source, digests.chained(await tables.audited.signed())
    every = await checkpoints.everything(tables.store)

    async def rows_from(since: int) -> int:
        count = 0
        for stream in source.streams:
            begin = digests.of(known[since - 1].streams if since else {}, stream).end(stream)
            (reached,) = (one.position for one in every if one.position.stream == stream)
            table = audit_check.TableCheck(tables.store, stream, reached, begin)
            async for block in exported_check.checked(source, known, stream, since=since):
                await table.compare(block)
            await table.finish(source)
            count += table.rows
        return count

    signed = [0, *(sum(one.events for one in each.streams.values()) for each in known)]
    assert len(known) >= 2
    for since, before in enumerate(signed):
        assert await rows_from(since) == len(tables.rows) - before
    edge = known[0].streams["0"].end("0")
    for one in tables.rows:
        if one["stream"] == "0" and one["ms"] >= edge.ms - 1:
            tables.write([row | {"actor": "x"} if row is one else row for row in tables.rows])
            with pytest.raises(TableAltered):
                await rows_from(0)
            if audit_check._position(one) <= edge:
                await rows_from(1)
            else:
                with pytest.raises(TableAltered):
                    await rows_from(1)
                break


def relinked(rows: list[dict[str, Any]], stream: str) -> None:
    """Every hash of a stream made anew, so that the table is a chain of its own."""
    head = chain.GENESIS
    for row in rows:
        if row["stream"] == stream:
            row["previous_hash"] = head
            head = row["hash"] = chain.link(head, audit_log.stored(row))


def harmed(rows: list[dict[str, Any]], data: st.DataObject) -> tuple[list[dict[str, Any]], Position] | None:
    """The rows with one thing done to them, and the first position concerned; None where nothing was."""
    after = [dict(row) for row in rows]
    place = data.draw(st.integers(0, len(rows) - 1))
    row, where = after[place], audit_check._position(rows[place])
    other = rows[data.draw(st.integers(0, len(rows) - 1))]
    match data.draw(st.sampled_from(["edit", "drop", "swap", "insert", "repeat"])):
        case "edit":
            name = data.draw(st.sampled_from(SHOWN))
            row[name] = other[name]
        case "drop":
            del after[place]
        case "swap":
            if other["stream"] != row["stream"]:
                return None
            there = next(one for one in after if audit_check._position(one) == audit_check._position(other))
            for name in SHOWN:
                row[name], there[name] = there[name], row[name]
            where = min(where, audit_check._position(other))
        case "insert" | "repeat":
            where = data.draw(st.sampled_from([where._replace(ms=1), where._replace(ms=2**50)]))
            after.append(dict(other) | {"stream": where.stream, "ms": where.ms, "seq": where.seq})
    if after == rows:
        return None
    if data.draw(st.booleans()):
        after.sort(key=lambda one: (one["stream"], one["ms"], one["seq"]))
        try:
            relinked(after, where.stream)
        except ValueError:
            # What was put there has no message's id: it cannot be linked.
            return None
        if after == rows:
            # A hash that was changed alone is made right again by linking.
            return None
    return after, where


async def test_whatever_is_done_to_the_table_is_found(tables: Tables) -> None:
    """Any row edited, dropped, exchanged, inserted or repeated, with hashes that fit or without: named."""
    assert await tables.checked()

    @settings(max_examples=60)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        done = harmed(tables.rows, data)
        if done is None:
            return
        tables.write(done[0])
        try:
            found = tables.found()
            assert isinstance(found, TableAltered)
            assert found.where == done[1]
        finally:
            tables.write(tables.rows)

    await asyncio.to_thread(holds)
    assert await tables.checked()


async def test_an_event_changed_in_the_log_is_named(tables: Tables) -> None:
    """The digest tells that the log was altered, and the table at which event."""
    keys = tables.audited.keys.partitions[1]
    entries = await tables.audited.redis.xrange(keys.events)
    await tables.audited.redis.delete(keys.events)
    for number, (entry, fields) in enumerate(entries):
        changed = fields | ({b"m": fields[b"m"].replace(b"w1", b"w2")} if number in {4, 7} else {})
        await tables.audited.redis.xadd(keys.events, changed, id=entry)
    with pytest.raises(HistoryAltered, match="Digest 1 vouches for 9 events of stream 1") as found:
        await tables.checked()
    assert found.value.where == f"1:{entries[4][0].decode()}"
    # Where the table was made to agree, the digest still tells, and between which events it was.
    for row in (rows := [dict(row) for row in tables.rows]):
        if row["stream"] == "1":
            changed = row["envelope"].replace(b"w1", b"w2")
            number = [one["stream"] for one in rows[: rows.index(row)]].count("1")
            row["envelope"] = changed if number in {4, 7} else row["envelope"]
            row["actor"] = "worker:w2" if number in {4, 7} else row["actor"]
    relinked(rows, "1")
    tables.write(rows)
    with pytest.raises(HistoryAltered) as found:
        await tables.checked()
    assert found.value.where == f"stream 1 after 0-0, up to {entries[8][0].decode()}"


async def test_what_is_right_is_not_blamed(tables: Tables) -> None:
    """A table that is behind, events after the newest digest, a table made anew, an empty one: all right."""
    report = await tables.checked()
    assert report["rows"] == report["streams"]
    before = tables.rows
    for _ in range(2):
        await tables.audited.append("0", histories.happy(2))
        report = await tables.checked()
    assert report["streams"]["0"] - report["rows"]["0"] == 12
    await tables.apply()
    report = await tables.checked()
    assert report["rows"] == report["streams"]
    with tables._connection.cursor() as cursor:
        for table in ("audit_log", "checkpoints"):
            cursor.execute(f"DELETE FROM {table}")
    assert set((await tables.checked())["rows"].values()) == {0}
    await tables.apply()
    assert [row for row in tables.rows if row in before] == before
    assert (await tables.checked())["rows"] == report["rows"]


async def test_a_database_that_goes_is_no_finding(tables: Tables, url: str, own_mariadb) -> None:
    """The database away in the middle is said as such: neither right nor altered."""
    gone = Store(own_mariadb.url, connect_timeout=0.5, timeout=0.5)
    check = audit_check.TableCheck(gone, "0", start("0")._replace(ms=2**60))
    await own_mariadb.stop()
    async for block in tables.audited.source.blocks("0", start("0")):
        linked, head = [], chain.GENESIS
        for one in block:
            linked.append(audit_check.Linked(one, head, chain.link(head, one)))
            head = linked[-1].hash
        with pytest.raises(StoreUnavailable):
            await check.compare(linked)
    await gone.close()
