"""The projector's role: every stream, metrics, health."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import httpx
import msgspec

from broker.events import connection, types
from broker.projections.messages import Messages
from broker.projections.store import Store
from broker.services.projector.role import Projector
from broker.settings import Settings
from support import databases, histories, log
from support.readmodels import count, reached
from support.waiting import wait_until

SETTINGS = Settings(projector_metrics_port=0, lease_ttl=1.0)


@asynccontextmanager
async def running(redis, keys, identity, url: str):
    """A projector and a client of its metrics port."""
    projector = Projector(SETTINGS, redis=redis, keys=keys, identity=identity, store=Store(url))
    stop, bound = asyncio.Event(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(projector.run(stop, bound.set_result))
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{await bound}") as client:
            yield projector, client
    finally:
        stop.set()
        await task


async def values(client: httpx.AsyncClient, name: str) -> dict[str, float]:
    """The samples of a metric by their labels."""
    lines = (await client.get("/metrics")).text.splitlines()
    found = {}
    for line in lines:
        if line.startswith(name + "{"):
            labels, _, value = line.removeprefix(name).rpartition(" ")
            found[labels] = float(value)
    return found


async def health(client: httpx.AsyncClient) -> tuple[int, dict[str, str]]:
    answer = await client.get("/health")
    return answer.status_code, msgspec.json.decode(answer.content)["checks"]


async def test_every_stream_is_projected(redis, log_name, store, url):
    """Partitions, control and access are projected by one process; metrics and health say so."""
    keys, identity = await log.create(redis, log_name)
    async with running(redis, keys, identity, url) as (_, client):
        ends = [
            (await histories.append(redis, keys.partitions[0], histories.happy(3)))[-1],
            (await histories.append(redis, keys.partitions[1], histories.happy(3, 1)))[-1],
            (await histories.append(redis, keys.control, [
                histories.Fact(b"client:acme", types.ClientRegistered("acme")),
            ]))[-1],
            (await histories.append(redis, keys.access, [
                histories.Fact(b"user:1", types.LoginSucceeded("1", "127.0.0.1")),
            ]))[-1],
        ]  # fmt: skip
        for end in ends:
            await wait_until(lambda at=end: reached(store, at))
        assert await count(store, "audit_log") == 20
        assert await count(store, "clients") == 1

        everything = {f'{{stream="{stream.stream}"}}': 1 for stream in keys.streams}

        async def exported() -> bool:
            lag = await values(client, "broker_projection_lag_events")
            read = lag.get('{projection="audit_log",stream="access"}') == 0 and set(lag.values()) == {0}
            return read and await values(client, "broker_projection_lease") == everything

        await wait_until(exported)
        assert await health(client) == (
            200,
            {"redis": "ok", "mysql": "ok", "log": "ok", "streams": "ok", "projections": "ok"},
        )


async def test_streams_that_nothing_wants_are_left_alone(redis, log_name, url):
    """A projector of message projections alone owns the partitions, and no stream that they do not read."""
    keys, identity = await log.create(redis, log_name)
    projector = Projector(
        SETTINGS, redis=redis, keys=keys, identity=identity, store=Store(url), projections=[Messages()]
    )
    assert [runner.stream for runner in projector.runners] == [part.stream for part in keys.partitions]


async def test_halted_projection_is_visible(redis, log_name, store, url):
    """A projection that stands still shows in health, in its gauge and in its lag."""
    keys, identity = await log.create(redis, log_name)
    async with running(redis, keys, identity, url) as (_, client):
        fields = histories.submitted().fields() | {b"t": b"Unheard"}
        await redis.xadd(keys.partitions[0].events, fields)
        await histories.append(redis, keys.partitions[0], histories.happy(1))

        async def shown() -> bool:
            halted = await values(client, "broker_projection_halted")
            lag = await values(client, "broker_projection_lag_events")
            key = '{projection="messages",stream="0"}'
            return halted.get(key) == 1 and lag[key] == 4

        await wait_until(shown)
        status, checks = await health(client)
        assert status == 503
        assert "Unheard" in checks["projections"]


async def test_outages_are_visible(own_valkey, own_mariadb, log_name):
    """Health says which server is waited for, without its address; it recovers by itself."""
    redis = connection.connect(own_valkey.url)
    keys, identity = await log.create(redis, log_name)
    url = databases.create(own_mariadb)
    from broker.projections import schema

    await asyncio.to_thread(schema.migrate, url)
    async with running(redis, keys, identity, url) as (_, client):

        async def says(**wanted: str) -> bool:
            checks = (await health(client))[1]
            return all(checks[name] == text for name, text in wanted.items())

        await wait_until(lambda: says(redis="ok", mysql="ok", streams="ok"))
        await own_valkey.kill()
        await wait_until(lambda: says(redis="waiting for Redis"))
        await own_valkey.start()
        await wait_until(lambda: says(redis="ok"))
        await own_mariadb.kill()
        await wait_until(lambda: says(mysql="waiting for MySQL"))
        await own_mariadb.start()
        await wait_until(lambda: says(mysql="ok", redis="ok"))
    await redis.aclose()


async def test_database_without_schema(redis, log_name, mariadb):
    """A projector that starts before the migration waits for it."""
    from broker.projections import schema

    keys, identity = await log.create(redis, log_name)
    url = databases.create(mariadb)
    async with running(redis, keys, identity, url) as (_, client):

        async def waits() -> bool:
            return (await health(client))[1]["mysql"] == "waiting for MySQL"

        await wait_until(waits)
        await asyncio.to_thread(schema.migrate, url)

        async def well() -> bool:
            return (await health(client))[0] == 200

        await wait_until(well)
    databases.drop(url)
