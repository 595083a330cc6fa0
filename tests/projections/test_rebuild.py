"""Rebuilds: while the tables serve, and afterwards they equal a fresh fold, whatever happened on the way."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import msgspec
import pymysql
import pytest

from broker.cli import rebuilding
from broker.embedded.mariadb import MariaDB
from broker.errors import LogUnavailable
from broker.events import types
from broker.events.archive.storage import ArchiveUnavailable, LocalStorage
from broker.projections import catalog
from broker.projections.rebuild import progress, run, showing, switching
from broker.projections.rebuild.background import Rebuilds
from broker.projections.rebuild.building import RebuildStopped
from broker.projections.rebuild.progress import RebuildCancelled, RebuildRunning
from broker.projections.rebuild.sources import ArchiveSource
from broker.projections.rebuild.switching import RebuildBlocked
from broker.projections.store import Store, StoreRetry, translate
from support import archives, databases, furnishing, histories, log, rebuilds
from support.histories import Fact
from support.proxy import proxy_to_port
from support.readmodels import TABLES, count, reached, runner, running, tables
from support.waiting import wait_until

MESSAGES = 60


class Scene:
    """A log, partly only in the archive, with projectors that follow it."""

    def __init__(self, redis, keys, identity, store: Store, where) -> None:
        self.redis, self.keys, self.identity, self.store, self.where = redis, keys, identity, store, where
        self.source = rebuilds.source(redis, keys, identity, where)
        self.last = {}

    async def feed(self, messages: int = MESSAGES) -> None:
        """More messages in every partition, and a user."""
        for stream in self.keys.partitions:
            facts = histories.happy(messages, stream.number)
            self.last[stream.stream] = (await histories.append(self.redis, stream, facts))[-1]
        user = Fact(
            b"user:u1", types.UserCreated(f"u{len(self.last)}{messages}", "a@b.c", "user", "$2b$", [])
        )
        self.last["control"] = (await histories.append(self.redis, self.keys.control, [user]))[-1]

    async def caught_up(self) -> None:
        for position in self.last.values():
            await wait_until(lambda at=position: reached(self.store, at))

    async def archive(self) -> None:
        """Seal what there is, and cut the streams behind it."""
        made = rebuilds.archivers(self.redis, self.keys, self.identity, self.where)
        async with archives.running(*made):
            for each in made:
                if (end := self.last.get(each.feed.stream)) is not None:
                    await wait_until(
                        lambda each=each, end=end: (
                            each.status.sealed is not None and each.status.sealed.end >= end
                        )
                    )
        for stream in self.keys.streams:
            if (end := self.last.get(stream.stream)) is not None:
                await self.redis.xtrim(stream.events, minid=end.entry_id, approximate=False)

    def rebuild(self, name: str, **options) -> run.Rebuild:
        return rebuilds.rebuild(self.store, self.source, name, **options)

    async def equals_fresh_fold(self, fresh: Store) -> None:
        """Every row, and every checkpoint but those of streams without an event."""
        for projection in catalog.projections():
            result = await rebuilds.rebuild(fresh, self.source, projection.name).run()
            assert result.outcome == "switched"
        found, expected = await tables(self.store), await tables(fresh)
        for rows in (found, expected):
            rows["checkpoints"] = [row for row in rows["checkpoints"] if row["events"]]
        assert found == expected
        assert not await progress.load(self.store)


@asynccontextmanager
async def projected(redis, log_name, store, where):
    """A scene: some history in the archive alone, some in both, some in the log, all of it projected."""
    keys, identity = await log.create(redis, log_name)
    scene = Scene(redis, keys, identity, store, where)
    runners = [runner(redis, stream, identity, store) for stream in keys.streams]
    async with running(*runners):
        await scene.feed()
        await scene.caught_up()
        await scene.archive()
        await scene.feed()
        await scene.caught_up()
        yield scene


@pytest.fixture
async def fresh(mariadb):
    """A store on another migrated database."""
    from broker.projections import schema

    url = databases.create(mariadb)
    await asyncio.to_thread(schema.migrate, url)
    opened = Store(url)
    yield opened
    await opened.close()
    databases.drop(url)


async def test_dropped_and_damaged_tables(redis, log_name, store, fresh, tmp_path):
    """Tables dropped, emptied and changed under a live system are rebuilt from archive and log, while it runs."""
    async with projected(redis, log_name, store, tmp_path) as scene:
        await store.execute("UPDATE messages SET status='failed',attempt_count=9 LIMIT 7")
        await store.execute("DELETE FROM messages LIMIT 5")
        await store.execute("DROP TABLE attempts")
        await store.execute("DELETE FROM audit_log")
        await store.execute("DROP TABLE statistics")
        await store.execute("UPDATE latencies SET messages=messages+1")
        await store.execute("DELETE FROM users")
        await scene.feed()
        recorded = []

        async def record(event):
            recorded.append(event)

        for name in catalog.names():
            result = await scene.rebuild(name, record=record).run()
            assert result.outcome == "switched"
        await scene.caught_up()
        await scene.equals_fresh_fold(fresh)
        assert await count(store, "messages") == 6 * MESSAGES
        assert recorded[:2] == [
            types.ReplayStarted("messages", 1),
            types.ReplayFinished("messages", 1, "switched", recorded[1].events),
        ]
        left = await store.select("SHOW TABLES LIKE '%\\_\\_%'")
        assert left == []


async def test_rebuilt_under_traffic(redis, log_name, store, fresh, tmp_path):
    """Rebuilt again and again while messages arrive: readers see every row throughout, and nothing is lost or doubled."""
    async with projected(redis, log_name, store, tmp_path) as scene:
        stop = asyncio.Event()
        least = await count(store, "messages")

        async def traffic() -> None:
            while not stop.is_set():
                await scene.feed(5)
                assert await count(store, "messages") >= least

        task = asyncio.create_task(traffic())
        for name in ("messages", "statistics", "audit_log", "messages"):
            await scene.rebuild(name, batch=50).run()
        stop.set()
        await task
        await scene.caught_up()
        await scene.equals_fresh_fold(fresh)


async def test_killed_rebuild_goes_on(  # noqa: PLR0917  fixtures
    redis, valkey, log_name, store, url, fresh, tmp_path
):
    """⚠ Kill -9 in the middle, again and again: the tables serve on, the next run goes on where that one was."""
    async with projected(redis, log_name, store, tmp_path) as scene:
        seen = 0
        for _ in range(3):
            process = rebuilds.spawn(valkey.url, url, log_name, tmp_path, "messages")

            async def further(seen=seen) -> bool:
                return sum(part.events for part in await progress.load(store, "messages")) > seen

            await wait_until(further, within=30)
            process.kill()
            process.wait()
            now = sum(part.events for part in await progress.load(store, "messages"))
            assert now > seen or now == 0
            seen = now
            assert await count(store, "messages") == 4 * MESSAGES
        await scene.feed()
        started = []
        await scene.rebuild("messages", on_progress=started.append).run()
        assert started[0].events > seen
        await scene.caught_up()
        await scene.equals_fresh_fold(fresh)


@pytest.mark.parametrize("renamed", [False, True])
async def test_crash_at_the_switch(  # noqa: PLR0917  fixtures
    redis, log_name, store, fresh, tmp_path, monkeypatch, renamed
):
    """⚠ A process that dies right before or after the RENAME leaves nothing held: the projectors settle it."""

    class Died(BaseException):
        pass

    async def dies(*_, **__):
        raise Died

    async with projected(redis, log_name, store, tmp_path) as scene:
        with monkeypatch.context() as patched:
            patched.setattr(switching, "_finish" if renamed else "switch", dies)
            # Nor does it get to clean up.
            patched.setattr(run.checkpoints, "hold", _only_holding(run.checkpoints.hold))
            with pytest.raises(Died):
                await scene.rebuild("messages").run()
        rows = await store.select("SELECT held FROM checkpoints WHERE projection='messages'")
        assert {row["held"] for row in rows} == {1}
        await scene.feed()
        await scene.caught_up()
        if not renamed:
            await scene.rebuild("messages").run()
        await scene.equals_fresh_fold(fresh)


async def left(store) -> list[str]:
    """Tables that are no read models' own."""
    rows = await store.select("SHOW TABLES LIKE %s", (r"%\_\_%",))
    return sorted(name for row in rows for name in row.values())


async def test_what_the_dead_left_is_removed(redis, log_name, store):
    """⚠ Tables of rebuilds that died around their records go when a projector starts; no others do."""
    keys, identity = await log.create(redis, log_name)
    for table in ("messages__old", "messages__next", "audit_log__next", "attempts__old", "statistics__trial"):
        await store.execute(f"CREATE TABLE {table} LIKE {table.partition('__')[0]}")
    # One that can be gone on with, one that runs, one that is read.
    await store.execute(
        "INSERT INTO rebuilds (projection,stream,version,phase,incarnation,started_at,updated_at) "
        "VALUES ('audit_log','control',1,'building','x',UTC_TIMESTAMP(3),UTC_TIMESTAMP(3))"
    )
    async with store.session() as running_one, store.session() as reader:
        await progress.take_lock(running_one, "messages")
        await reader.execute("START TRANSACTION")
        await reader.rows("SELECT COUNT(*) FROM attempts__old")
        async with running(runner(redis, keys.control, identity, store)):
            await wait_until(lambda: _projecting(store))
        assert await left(store) == ["attempts__old", "audit_log__next", "messages__next", "messages__old"]
    await wait_until(lambda: _free(store, "messages"))
    async with running(runner(redis, keys.control, identity, store)):
        await wait_until(lambda: _gone(store, ["audit_log__next"]))
    assert await run.cancel(store, run.named("audit_log"))
    assert await left(store) == []


async def _projecting(store) -> bool:
    return bool(await store.select("SELECT 1 FROM checkpoints WHERE stream='control'"))


async def _free(store, name: str) -> bool:
    return not await progress.locked(store, name)


async def _gone(store, but: list[str]) -> bool:
    return await left(store) == but


async def test_the_next_rebuild_removes_what_the_last_left(redis, log_name, store, tmp_path):
    """⚠ One that died after its switch, before the replaced tables were dropped: another settles that too."""
    async with projected(redis, log_name, store, tmp_path) as scene:
        await store.execute("CREATE TABLE latencies__old LIKE latencies")
        async with store.session() as session:
            await progress.take_lock(session, "statistics")
            assert await switching.settle(session, run.named("statistics")) == "nothing"
        assert await left(store) == []
        await scene.caught_up()


async def test_failure_right_after_the_rename(redis, log_name, store, fresh, tmp_path, monkeypatch):  # noqa: PLR0917
    """⚠ A failure between RENAME and checkpoints leaves the projection held until they are right; it cannot run ahead."""
    finish, failed = switching._finish, []

    async def fails_first(session, projection):
        if not failed:
            failed.append(projection.name)
            raise StoreRetry("deadlock")
        rows = await session.rows("SELECT DISTINCT held FROM checkpoints WHERE projection='statistics'")
        assert [int(row[0]) for row in rows] == [1]
        await finish(session, projection)

    async with projected(redis, log_name, store, tmp_path) as scene:
        monkeypatch.setattr(switching, "_finish", fails_first)
        feeding = asyncio.create_task(scene.feed())
        result = await scene.rebuild("statistics").run()
        assert (result.outcome, failed) == ("switched", ["statistics"])
        await feeding
        await scene.caught_up()
        monkeypatch.undo()
        await scene.equals_fresh_fold(fresh)


def _only_holding(hold):
    async def only(session, name, *, held):
        if held:
            await hold(session, name, held=held)

    return only


async def test_database_away_in_the_middle(  # noqa: PLR0917  fixtures
    redis, log_name, own_mariadb, mariadb, fresh, tmp_path
):
    """MySQL cut off in the middle of a rebuild: it waits, says what for, and goes on."""
    from broker.projections import schema

    url = databases.create(own_mariadb)
    await asyncio.to_thread(schema.migrate, url)
    async with proxy_to_port(own_mariadb.port) as proxy:
        direct, through = Store(url), Store(url.replace(f":{own_mariadb.port}/", f":{proxy.port}/"))
        async with projected(redis, log_name, direct, tmp_path) as scene:
            waited, fell = [], []

            def shown(now) -> None:
                if now.phase == "waiting":
                    waited.append(now.waiting_for)
                    proxy.mode = "pass"
                elif not fell:
                    fell.append(now.events)
                    proxy.mode = "cut"
                    proxy.cut()

            await rebuilds.rebuild(through, scene.source, "messages", batch=20, on_progress=shown).run()
            assert fell
            assert set(waited) == {"mysql"}
            await scene.caught_up()
            await scene.equals_fresh_fold(fresh)
        await direct.close()
        await through.close()


SMALL = ("--innodb-file-per-table=0", "--innodb-data-file-path=ibdata1:12M;ibdata2:8M")


@pytest.fixture
async def small_mariadb(tmp_path):
    """A MariaDB whose disk has room for next to nothing."""
    server = furnishing.furnish(MariaDB(tmp_path / "mariadb", port=0, extra=SMALL))
    await server.start()
    yield server
    await server.stop()


async def test_database_that_is_full(redis, log_name, small_mariadb, tmp_path):
    """⚠ No room for the rebuilt rows: it waits, says why, and with more room ends with every row, once."""
    from broker.projections import schema

    url = databases.create(small_mariadb)
    await asyncio.to_thread(schema.migrate, url)
    store = Store(url)
    keys, identity = await log.create(redis, log_name)
    facts = [histories.submitted() for _ in range(300)]
    large = [
        msgspec.structs.replace(one, event=msgspec.structs.replace(one.event, sealed=bytes(40_000)))
        for one in facts
    ]
    await histories.append(redis, keys.partitions[0], large)
    rebuilds_here = Rebuilds(lambda: rebuilds.source(redis, keys, identity, tmp_path / "archive"))
    projection = run.named("messages")

    async def nothing(_):
        pass

    await rebuilds_here.begin(store, projection, nothing)

    async def full_up():
        now = await rebuilds_here.look(store, projection)
        return now if now.waiting_for else None

    now = await wait_until(full_up, within=30)
    assert (now.state, now.waiting_for, now.events_per_second) == ("running", "mysql", None)
    assert "is full" in now.reason
    assert await count(store, "messages") == 0
    await small_mariadb.stop()
    small_mariadb.extra = (SMALL[0], f"{SMALL[1]}:autoextend")
    await small_mariadb.start()

    async def ended():
        return (await rebuilds_here.look(store, projection)).last

    last = await wait_until(ended, within=60)
    assert (last.outcome, last.events) == ("switched", 300)
    found = await store.select("SELECT message_id,LENGTH(encrypted_body) AS size FROM messages")
    assert len({row["message_id"] for row in found}) == len(found) == 300
    assert {row["size"] for row in found} == {40_000}
    await store.close()


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (3, "Error writing file"), (14, "Can't change size of file"), (1021, "Disk full"),
        (1026, "Error writing file"), (1030, "Got error 28 from storage engine"), (1114, "The table is full"),
        (1290, "running with the --read-only option"),
    ],
)  # fmt: skip
def test_a_database_that_cannot_write_is_waited_for(number, says):
    """Whatever the server calls it that there is no room, no row is at fault."""
    error = translate(pymysql.err.OperationalError(number, says))
    assert showing.waiting(error) == showing.Waiting("mysql", f"OperationalError: ({number}, {says!r})")
    assert isinstance(error, run.AWAY)


@pytest.mark.parametrize(
    ("error", "what", "says"),
    [
        (LogUnavailable("gone"), "redis", "waits for Redis"),
        (ArchiveUnavailable("gone"), "archive", "waits for the archive"),
        (StoreRetry("lost"), "mysql", "waits for MySQL"),
    ],
)
async def test_what_is_away_is_named(store, error, what, says):
    """In the API, for other processes, and at a terminal in place of a rate that stands still."""
    await store.execute(
        "INSERT INTO rebuilds (projection,stream,version,phase,incarnation,events,total,started_at,updated_at) "
        "VALUES ('users','control',1,'building','x',7,9,UTC_TIMESTAMP(3) - INTERVAL 1 MINUTE,UTC_TIMESTAMP(3))"
    )
    waits = showing.waiting(error)
    assert (waits.what, waits.reason) == (what, error.detail)
    now = showing.progress_of(await progress.load(store, "users"), waits=waits)
    assert (now.phase, now.rate, now.seconds_left) == ("waiting", None, None)
    assert rebuilding._speed(now) == says
    assert "left" in rebuilding._speed(showing.progress_of(await progress.load(store, "users")))
    await progress.wait(store, "users", waits.what)
    assert showing.progress_of(await progress.load(store, "users")).waiting_for == what


async def test_what_is_waited_for_is_shown(redis, log_name, store, tmp_path):
    """⚠ A rebuild that waits for the archive says so to everybody who looks, and with the reason where it runs."""
    where = tmp_path / "archive"
    async with projected(redis, log_name, store, where) as scene:
        aside = where.rename(tmp_path / "aside")
        where.write_bytes(b"in the way")
        projection = run.named("messages")
        here, elsewhere = Rebuilds(lambda: scene.source), Rebuilds(lambda: scene.source)

        async def nothing(_):
            pass

        await here.begin(store, projection, nothing)

        async def both():
            found = [await each.look(store, projection) for each in (here, elsewhere)]
            return found if all(one.waiting_for for one in found) else None

        ours, theirs = await wait_until(both)
        for one in (ours, theirs):
            assert (one.state, one.waiting_for) == ("running", "archive")
            assert (one.events_per_second, one.seconds_left) == (None, None)
        assert (ours.reason, theirs.reason) == (f"{where}: Not a directory.", None)
        where.unlink()
        aside.rename(where)

        async def ended():
            return (await here.look(store, projection)).last

        assert (await wait_until(ended)).outcome == "switched"
        assert (await elsewhere.look(store, projection)).state == "none"


async def test_who_waited_and_died_waits_no_more(store):
    """A rebuild that said that it waits, and nothing since, is one that can be taken up."""
    await store.execute(
        "INSERT INTO rebuilds (projection,stream,version,phase,incarnation,events,total,started_at,updated_at) "
        "VALUES ('users','control',1,'no_redis','x',7,9,UTC_TIMESTAMP(3),UTC_TIMESTAMP(3))"
    )
    looking, users = Rebuilds(lambda: None), run.named("users")
    now = await looking.look(store, users)
    assert (now.state, now.waiting_for, now.events, now.total) == ("running", "redis", 7, 9)
    await store.execute("UPDATE rebuilds SET updated_at=updated_at - INTERVAL 2 MINUTE")
    now = await looking.look(store, users)
    assert (now.state, now.waiting_for) == ("interrupted", None)


async def test_two_at_once_and_cancelling(  # noqa: PLR0917  fixtures
    redis, log_name, store, fresh, tmp_path, monkeypatch
):
    """A second rebuild is refused while one runs; cancelling leaves the tables as they were and nothing behind."""
    async with projected(redis, log_name, store, tmp_path) as scene:
        begun, go_on, recorded = asyncio.Event(), asyncio.Event(), []
        ends = scene.source.totals

        async def totals():
            begun.set()
            await go_on.wait()
            return await ends()

        async def record(event):
            recorded.append(event)

        monkeypatch.setattr(scene.source, "totals", totals)
        task = asyncio.create_task(scene.rebuild("audit_log", record=record).run())
        await begun.wait()
        with pytest.raises(RebuildRunning):
            await scene.rebuild("audit_log").run()
        other = run.named("audit_log")
        assert await run.cancel(store, other)
        go_on.set()
        with pytest.raises(RebuildCancelled):
            await task
        assert recorded[-1].outcome == "cancelled"
        assert not await run.cancel(store, other)
        assert await store.select("SHOW TABLES LIKE '%\\_\\_next'") == []
        await scene.feed()
        await scene.caught_up()
        await scene.equals_fresh_fold(fresh)


async def test_difference_row_by_row(redis, log_name, store, tmp_path):
    """The comparison counts and names every row that differs; without a switch the tables stay as they were."""
    async with projected(redis, log_name, store, tmp_path) as scene:
        same = await scene.rebuild("messages", compare=True, switch=False).run()
        assert [one.equal for one in same.differences] == [True]
        assert same.outcome == "discarded"
        rows = await store.select("SELECT message_id FROM messages ORDER BY message_id LIMIT 3")
        names = [row["message_id"] for row in rows]
        await store.execute("DELETE FROM messages WHERE message_id=%s", (names[0],))
        await store.execute("UPDATE messages SET status='failed' WHERE message_id=%s", (names[1],))
        await store.execute(
            "INSERT INTO messages SELECT REPLACE(message_id,'-7','-0'),client_id,sender_number_hashed,"
            "encrypted_body,status,parked,reason,cycle,attempt_count,queued_at,delivered_at,failed_at,"
            "next_attempt_at,last_error,last_code,domain,certificate,correlation_id,stream,submitted_ms,"
            "submitted_seq,changed_ms,changed_seq FROM messages WHERE message_id=%s",
            (names[2],),
        )
        (found,) = (await scene.rebuild("messages", compare=True, switch=False).run()).differences
        assert (found.missing, found.surplus, found.changed) == (1, 1, 1)
        assert f"missing: {names[0]}" in found.examples
        assert f"changed: {names[1]}" in found.examples
        assert await count(store, "messages") == 4 * MESSAGES
        (found,) = (await scene.rebuild("messages", compare=True).run()).differences
        assert not found.equal
        (found,) = (await scene.rebuild("messages", compare=True).run()).differences
        assert found.equal


async def test_dry_run(redis, log_name, store, tmp_path):
    """An estimate counts the events and measures a rate, and leaves nothing behind."""
    async with projected(redis, log_name, store, tmp_path) as scene:
        before = await tables(store)
        found = await run.estimate(store, scene.source, run.named("messages"))
        assert found.events == 2 * 2 * 3 * MESSAGES
        assert found.rate > 0
        assert found.seconds == found.events / found.rate
        assert await tables(store) == before
        assert await store.select("SHOW TABLES LIKE '%\\_\\_trial'") == []


async def test_archive_alone(redis, log_name, store, fresh, tmp_path):
    """From the archive alone comes what is in it; a read model none of whose streams is there is left as it is."""
    async with projected(redis, log_name, store, tmp_path) as scene:
        await scene.archive()
        expected = await tables(store)
    archive = ArchiveSource(LocalStorage(tmp_path), log_name)
    for name in catalog.names():
        assert (await rebuilds.rebuild(fresh, archive, name).run()).outcome == "switched"
    found = await tables(fresh)
    for rows in (found, expected):
        rows["checkpoints"] = [row for row in rows["checkpoints"] if row["events"]]
    assert found == expected
    nothing = ArchiveSource(LocalStorage(tmp_path / "none"), log_name)
    result = await rebuilds.rebuild(fresh, nothing, "messages").run()
    assert (result.outcome, result.events) == ("nothing", 0)
    assert len((await tables(fresh))["messages"]) == len(found["messages"])


async def test_unreadable_event(redis, log_name, store, tmp_path):
    """An event that cannot be folded is named, and the tables serve on as they were."""
    async with projected(redis, log_name, store, tmp_path) as scene:
        before = await tables(store)
        stream = scene.keys.partitions[0]
        entry = await redis.xadd(
            stream.events, {"t": "Unheard", "s": b"x" * 16, "m": b"\x92\x01\xa1a", "d": b"\x90"}
        )

        async def halted() -> bool:
            rows = await store.select(
                "SELECT 1 FROM checkpoints WHERE projection='messages' AND halted IS NOT NULL"
            )
            return bool(rows)

        await wait_until(halted)
        with pytest.raises(RebuildStopped, match=f"0:{entry.decode()}"):
            await scene.rebuild("messages").run()
        after = await tables(store)
        assert after["messages"] == before["messages"]
        assert await count(store, "checkpoints WHERE held=1") == 0


async def test_readers_hold_up_the_switch_only_so_long(  # noqa: PLR0917  fixtures
    redis, log_name, store, url, fresh, tmp_path, monkeypatch
):
    """⚠ A reader that never ends blocks the RENAME, not the other readers; the rebuild gives up and is taken up later."""
    monkeypatch.setattr(switching, "ATTEMPTS", 2)
    async with projected(redis, log_name, store, tmp_path) as scene:
        with databases.connected(url) as reader, reader.cursor() as cursor:
            reader.begin()
            cursor.execute("SELECT COUNT(*) FROM messages")
            with pytest.raises(RebuildBlocked):
                await scene.rebuild("messages").run()
            assert await count(store, "messages") == 4 * MESSAGES
            await scene.feed()
            await scene.caught_up()
        await scene.rebuild("messages").run()
        await scene.equals_fresh_fold(fresh)


def test_every_table_has_a_projection():
    """What is rebuilt is every table of every read model."""
    assert {table for each in catalog.projections() for table in each.tables} == set(TABLES)
