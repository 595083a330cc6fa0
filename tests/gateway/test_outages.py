"""What the gateway does without Redis, without MySQL, without the server, and with a full log."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from structlog.testing import capture_logs

from broker.domain import ids
from broker.embedded.valkey import Valkey
from broker.events import connection as redis_connection
from support import log
from support.calling import MESSAGE, Caller
from support.proxy import proxy_to_port
from support.waiting import wait_until
from support.world import World


@pytest.fixture
async def own(own_valkey: Valkey, pki, tmp_path):
    """A world on a Valkey of its own."""
    client = redis_connection.connect(own_valkey.url)
    yield await World(own_valkey.url, client, pki, tmp_path / "own", "own").create()
    await client.aclose()


async def subjects(world) -> list[str]:
    """Every submitted message; over a new connection, as the server may have been restarted."""
    client = redis_connection.connect(world.url)
    found = [
        ids.text(fields[b"s"])
        for stream in world.keys.partitions
        for _, fields in await log.history(client, stream)
    ]
    await client.aclose()
    return found


@pytest.mark.case("TC-P-008")
@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_redis_away_and_back(own, own_valkey, end):
    """503 with Retry-After while Redis is down, 202 by itself afterwards, and every 202 is in the log."""
    taken = []
    async with own.gateway() as gateway:
        demo = Caller(gateway.port, own.contexts["demo"])
        taken += [(await demo.submit()).json["message_id"] for _ in range(20)]
        await getattr(own_valkey, end)()
        down = await demo.submit()
        assert (down.status, down.json["error"]) in {(503, "log_unavailable"), (503, "trust_unproved")}
        assert int(down.headers["retry-after"]) >= 1
        assert (await demo.get("/api/v1/health")).status == 503
        await own_valkey.start()

        async def answers() -> bool:
            answer = await demo.submit()
            if answer.status == 202:
                taken.append(answer.json["message_id"])
            return answer.status == 202

        await wait_until(answers)
        assert set(taken) <= set(await subjects(own))


async def test_a_lost_reply_does_not_double_a_message(own, own_valkey):
    """The append is repeated under its batch id: a 202, and one event."""
    async with (
        proxy_to_port(own_valkey.port) as proxy,
        own.gateway(url=f"redis://127.0.0.1:{proxy.port}/0", trust_url=own.url) as gateway,
    ):
        demo = Caller(gateway.port, own.contexts["demo"])
        proxy.mode = "drop-reply"
        taken = []
        for n in range(10):
            proxy.drops = 1
            answer = await demo.submit()
            assert answer.status == 202
            assert proxy.dropped == n + 1
            taken.append(answer.json["message_id"])
        assert sorted(await subjects(own)) == sorted(taken)


async def test_an_unknown_outcome_is_settled_by_the_key(own, own_valkey):
    """A 503 means unknown: repeated with the same key, the message is in the log once."""
    headers = {"idempotency-key": "k"}
    async with (
        proxy_to_port(own_valkey.port) as proxy,
        own.gateway(url=f"redis://127.0.0.1:{proxy.port}/0", trust_url=own.url) as gateway,
    ):
        demo = Caller(gateway.port, own.contexts["demo"])
        # A connection that is open already, so that the append itself goes through.
        assert (await demo.submit()).status == 202
        before = await subjects(own)
        proxy.mode, proxy.drops = "drop-reply", 10_000
        lost = await demo.submit(headers=headers)
        assert (lost.status, lost.json["error"]) == (503, "log_unavailable")
        (written,) = set(await subjects(own)) - set(before)
        proxy.mode = "pass"
        again = await demo.submit(headers=headers)
        assert (again.status, again.json["message_id"]) == (202, written)
        assert again.headers["idempotent-replayed"] == "true"
        assert len(await subjects(own)) == len(before) + 1


async def test_an_emptied_redis_is_refused(own, own_valkey):
    """A log without its incarnation takes nothing: 503, and health says why."""
    async with own.gateway() as gateway:
        demo = Caller(gateway.port, own.contexts["demo"])
        assert (await demo.submit()).status == 202
        await own.redis.flushall()

        async def refused() -> bool:
            answer = await demo.submit()
            assert answer.status == 503
            return answer.json["error"] == "trust_unproved"

        await wait_until(refused)

        async def unhealthy():
            answer = await demo.get("/api/v1/health")
            return answer if answer.status == 503 else None

        health = await wait_until(unhealthy)
        assert "emptied" in health.json["checks"]["log"]
        assert await subjects(own) == []


async def test_a_full_log_says_so(own):
    """At maxmemory it is 503 log_full, for single messages and batches; with room again 202."""
    async with own.gateway() as gateway:
        demo = Caller(gateway.port, own.contexts["demo"])
        await own.redis.config_set("maxmemory", 1)
        for path, body in (
            ("/api/v1/messages", MESSAGE),
            ("/api/v1/messages/batch", {"messages": [MESSAGE]}),
        ):
            answer = await demo.post(path, body)
            assert (answer.status, answer.json["error"]) == (503, "log_full"), answer.body
            assert int(answer.headers["retry-after"]) >= 1
        await own.redis.config_set("maxmemory", 0)
        assert (await demo.submit()).status == 202


async def test_the_high_water_mark_comes_before_the_end(world):
    """Above the mark the gateway takes nothing, though Redis would, and health says why."""
    why: list[str | None] = ["91 % of memory is in use"]
    async with world.gateway(full=lambda: why[0]) as gateway:
        demo = Caller(gateway.port, world.contexts["demo"])
        for path, body in (
            ("/api/v1/messages", MESSAGE),
            ("/api/v1/messages/batch", {"messages": [MESSAGE]}),
        ):
            answer = await demo.post(path, body)
            assert (answer.status, answer.json["error"]) == (503, "log_full")
        health = await demo.get("/api/v1/health")
        assert (health.status, health.json["checks"]["log"]) == (503, why[0])
        why[0] = None
        assert (await demo.submit()).status == 202


@pytest.mark.case("TC-P-009")
async def test_without_mysql_and_without_the_server(world, gateway, demo):
    """Neither runs in these tests at all: messages are taken, health is 200."""
    answers = await asyncio.gather(*(demo.submit() for _ in range(10)))
    assert {answer.status for answer in answers} == {202}
    assert (await demo.get("/api/v1/health")).status == 200


async def test_the_end_of_the_grace_period(own, own_valkey):
    """A submission that Redis does not answer is told 503, whether it was taken is unknown; and no traceback."""
    settings = msgspec.structs.replace(own.settings, grace_period=0.1)
    async with (
        proxy_to_port(own_valkey.port) as proxy,
        own.gateway(
            url=f"redis://127.0.0.1:{proxy.port}/0", trust_url=own_valkey.url, settings=settings
        ) as gateway,
    ):
        demo = Caller(gateway.port, own.contexts["demo"])
        assert (await demo.submit()).status == 202
        proxy.mode = "silent"
        submission = asyncio.create_task(demo.submit())
        await wait_until(lambda: any(lane.gathering or lane._task for lane in gateway.appender._lanes))
        with capture_logs() as logs:
            gateway.stop.set()
            answer = await submission
            proxy.cut()
            await gateway.task
    assert (answer.status, answer.json["error"]) == (503, "shutting_down")
    assert int(answer.headers["retry-after"]) >= 1
    assert "request_failed" not in {line["event"] for line in logs}
