"""Crashes and outages: afterwards the tables equal a fresh fold of the same history."""

from __future__ import annotations

import asyncio
import random
import signal
from contextlib import asynccontextmanager, suppress

import pytest

from broker.embedded.mariadb import MariaDB
from broker.errors import StoreUnavailable
from broker.events import connection
from broker.projections import schema
from broker.projections.status import State
from broker.projections.store import Store
from support import databases, histories, log
from support.examples import examples
from support.projector_process import spawn
from support.proxy import proxy_to_port
from support.readmodels import count, reached, runner, running, tables
from support.waiting import wait_until


@asynccontextmanager
async def migrated(server: MariaDB):
    """A store on a fresh migrated database of `server`."""
    url = databases.create(server)
    await asyncio.to_thread(schema.migrate, url)
    store = Store(url)
    store.url = url
    try:
        yield store
    finally:
        await store.close()


async def equals_fresh_fold(redis, keys, identity, store: Store, *, server: MariaDB, last) -> None:
    """Fold the whole history into an empty database and compare every row of every table."""
    async with migrated(server) as fresh:
        runners = [
            runner(redis, stream, identity, fresh, owner="fresh", batch=1000) for stream in keys.partitions
        ]
        async with running(*runners):
            for position in last:
                await wait_until(lambda at=position: reached(fresh, at))
        names = {at.stream for at in last}
        found, expected = await tables(store), await tables(fresh)
        for rows in (found, expected):
            rows["checkpoints"] = [row for row in rows["checkpoints"] if row["stream"] in names]
        assert found == expected


async def feed_in(redis, keys, rounds: int, size: int, between):
    """Append `rounds` × `size` messages to both partitions, with `between` called after each; the last positions."""
    last = []
    for _ in range(rounds):
        last = [
            (await histories.append(redis, stream, histories.happy(size, stream.number)))[-1]
            for stream in keys.partitions
        ]
        await between()
    return last


async def test_killed_projectors(redis, valkey, mariadb, log_name):
    """Kill -9 of two projectors at random moments, again and again: nothing lost, nothing doubled."""
    keys, identity = await log.create(redis, log_name)
    async with migrated(mariadb) as store:
        processes = [spawn(valkey.url, store.url, log_name) for _ in range(2)]
        chance = random.Random(7)

        async def kill_one() -> None:
            before = await count(store, "audit_log")
            await wait_until(lambda: _more(store, before))
            victim = chance.randrange(2)
            processes[victim].kill()
            processes[victim].wait()
            processes[victim] = spawn(valkey.url, store.url, log_name)

        try:
            last = await feed_in(redis, keys, examples(3, 5), 150, kill_one)
            for position in last:
                await wait_until(lambda at=position: reached(store, at), within=60)
        finally:
            for process in processes:
                process.send_signal(signal.SIGTERM)
            # One that has only just started has no handlers yet.
            assert {process.wait() for process in processes} <= {0, -signal.SIGTERM}
        await equals_fresh_fold(redis, keys, identity, store, server=mariadb, last=last)


async def _more(store: Store, before: int) -> bool:
    return await count(store, "audit_log") > before


async def test_killed_connections(redis, mariadb, log_name):
    """The server drops every connection at random moments, between any two statements."""
    keys, identity = await log.create(redis, log_name)
    async with migrated(mariadb) as store, migrated(mariadb) as other:
        runners = [runner(redis, stream, identity, store, batch=40) for stream in keys.partitions]

        killed: list[int] = []

        async def some() -> int:
            name = store._address.database
            rows = await other.select("SELECT id FROM information_schema.processlist WHERE db=%s", (name,))
            for row in rows:
                # It may have ended by itself meanwhile.
                with suppress(StoreUnavailable):
                    await other.execute(f"KILL {row['id']}")
                    killed.append(row["id"])
            return len(rows)

        async def kill() -> None:
            for _ in range(4):
                await wait_until(some)

        async def there(position) -> bool:
            # The connection that asks may be among the killed.
            with suppress(StoreUnavailable):
                return await reached(store, position)
            return False

        async with running(*runners):
            last = await feed_in(redis, keys, examples(5, 10), 60, kill)
            for position in last:
                await wait_until(lambda at=position: there(at))
        assert len(killed) > 10
        await equals_fresh_fold(redis, keys, identity, store, server=mariadb, last=last)


async def test_lost_replies_of_the_database(redis, own_mariadb, mariadb, log_name):
    """A commit whose answer is lost is settled by the durable checkpoint: done once, whichever way it went."""
    keys, identity = await log.create(redis, log_name)
    async with migrated(own_mariadb) as direct, proxy_to_port(own_mariadb.port) as proxy:
        store = Store(direct.url.replace(f":{own_mariadb.port}/", f":{proxy.port}/"))
        runners = [runner(redis, stream, identity, store, batch=40) for stream in keys.partitions]

        async def drop() -> None:
            # One reply after another is lost: of the checkpoint, of rows, of the commit.
            proxy.drops = 3
            proxy.mode = "drop-reply"

        async with running(*runners):
            last = await feed_in(redis, keys, 10, 60, drop)
            for position in last:
                await wait_until(lambda at=position: reached(direct, at))
        assert proxy.dropped > 5
        await equals_fresh_fold(redis, keys, identity, direct, server=mariadb, last=last)
        await store.close()


async def test_database_killed_and_back(redis, own_mariadb, mariadb, log_name):
    """MySQL is killed and restarted while events flow: the projector says what it waits for, and resumes."""
    keys, identity = await log.create(redis, log_name)
    async with migrated(own_mariadb) as store:
        runners = [runner(redis, stream, identity, store, batch=40) for stream in keys.partitions]

        async def nobodys() -> bool:
            return not await redis.hget(keys.partitions[0].lease, "owner")

        async def restart() -> None:
            await own_mariadb.kill()
            await wait_until(lambda: all(each.status.state is State.NO_MYSQL for each in runners))
            # Whoever can reach the database may take over meanwhile: it is let go between two tries.
            await wait_until(nobodys)
            await own_mariadb.start()

        async with running(*runners):
            last = await feed_in(redis, keys, 2, 100, restart)
            for position in last:
                await wait_until(lambda at=position: reached(store, at))
            await wait_until(lambda: all(each.status.state is State.OWNER for each in runners))
        await equals_fresh_fold(redis, keys, identity, store, server=mariadb, last=last)


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_redis_restarted(own_valkey, mariadb, log_name, how):
    """Redis is killed or stopped and restarted while events flow: the projector waits and resumes."""
    redis = connection.connect(own_valkey.url)
    keys, identity = await log.create(redis, log_name)
    async with migrated(mariadb) as store:
        runners = [runner(redis, stream, identity, store, batch=40) for stream in keys.partitions]

        async def restart() -> None:
            await getattr(own_valkey, how)()
            await wait_until(lambda: all(each.status.state is State.NO_REDIS for each in runners))
            await own_valkey.start()
            await wait_until(lambda: _answers(redis))

        async with running(*runners):
            await wait_until(lambda: all(each.status.state is State.OWNER for each in runners))
            last = await feed_in(redis, keys, 2, 100, restart)
            for position in last:
                await wait_until(lambda at=position: reached(store, at))
        await equals_fresh_fold(redis, keys, identity, store, server=mariadb, last=last)
    await redis.aclose()


async def _answers(redis) -> bool:
    try:
        return await redis.ping()
    except Exception:  # noqa: BLE001  the old connections fail once each
        return False


async def test_emptied_redis_is_refused(own_valkey, mariadb, log_name):
    """⚠ A Redis that comes back empty is not followed; the tables stay."""
    redis = connection.connect(own_valkey.url)
    keys, identity = await log.create(redis, log_name)
    async with migrated(mariadb) as store:
        one = runner(redis, keys.partitions[0], identity, store)
        async with running(one):
            last = await histories.append(redis, keys.partitions[0], histories.happy(5))
            await wait_until(lambda: reached(store, last[-1]))
            await redis.flushall()
            await wait_until(lambda: one.status.state is State.REFUSED)
            assert "missing" in one.status.detail
        assert await count(store, "messages") == 5
    await redis.aclose()
