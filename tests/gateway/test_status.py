"""GET /api/v1/messages/{id}: from Redis first, with the read model's history, never a 404 after a 202."""

from __future__ import annotations

import contextlib

import pytest

from broker import clock
from broker.domain import ids
from broker.embedded.mariadb import MariaDB
from broker.events import envelope
from broker.events.claims import Settlement
from broker.events.delivery_log import DeliveryLog
from broker.events.types import Delivered, DeliveryAttempted, Failed, MessageParked, RetryScheduled
from broker.projections import schema
from broker.projections.queries import Queries
from broker.projections.store import Store
from support import databases, readmodels
from support.calling import Caller
from support.log import OUTCOMES_KEPT_MS
from support.waiting import wait_until

UNKNOWN = ids.text(ids.new(0))


def path(message: str) -> str:
    return f"/api/v1/messages/{message}"


class Worker:
    """Settles a message's attempts as a worker does."""

    def __init__(self, world, message: str) -> None:
        self.raw = ids.parse(message)
        partition = world.keys.partitions[ids.partition(self.raw)]
        self.log = DeliveryLog(
            world.redis, partition, world.identity, "w1", outcomes_kept_ms=OUTCOMES_KEPT_MS
        )
        self.redis = world.redis

    async def attempt(self, kind: str, *, code: int = 200, delay_ms: int = 60_000) -> None:
        await self.log.ensure_group()
        (task,) = await self.log.admit(await self.log.read(10, self.redis, block_ms=1))
        now, n = clock.now_ms(), task.attempt
        event = {
            "done": Delivered("demo", 1, n),
            "failed": Failed("demo", 1, n, "refused"),
            "retry": RetryScheduled("demo", 1, n, delay_ms),
            "park": MessageParked("demo", 1, n, "crashed 3 workers"),
        }[kind]
        attempted = DeliveryAttempted(
            "demo", 1, n, "webhook", kind == "done", 12, code, None if kind == "done" else "busy"
        )
        settled = await self.log.settle([
            Settlement(
                kind="done" if kind == "failed" else kind, message_id=self.raw, client_id="demo", cycle=1, attempt=n,
                envelope=envelope.encode(now, "worker:w1"), claim=task.claim,
                attempted=None if kind == "park" else attempted, event=event,
                outcome={"done": "delivered", "failed": "failed"}.get(kind), at_ms=now, delay_ms=delay_ms,
            )
        ])  # fmt: skip
        assert settled[0] is not None


@contextlib.asynccontextmanager
async def projected(world, mariadb: MariaDB):
    """A gateway with a read model that projectors keep."""
    url = databases.create(mariadb)
    schema.migrate(url)
    store, queries = Store(url), Queries(url)
    runners = [readmodels.runner(world.redis, keys, world.identity, store) for keys in world.keys.partitions]
    async with readmodels.running(*runners), world.gateway(read_model=queries) as gateway:
        yield Caller(gateway.port, world.contexts["demo"])
    await queries.close()
    await store.close()
    databases.drop(url)


async def eventually(demo: Caller, message: str, **wanted) -> dict:
    """The status once it is as wanted."""

    async def look():
        answer = await demo.get(path(message))
        assert answer.status == 200, answer.body
        found = answer.json
        return found if all(found[name] == value for name, value in wanted.items()) else None

    return await wait_until(look, what=str(wanted))


async def test_the_whole_life_of_a_message(world, mariadb):
    """Queued, then waiting for its retry, then delivered, with every attempt, its code and latency."""
    async with projected(world, mariadb) as demo:
        given = (await demo.submit()).json
        message = given["message_id"]
        right_after = await demo.get(path(message))
        assert (right_after.status, right_after.json["status"]) == (200, "queued")
        worker = Worker(world, message)
        await worker.attempt("retry", code=503, delay_ms=1)
        waiting = await eventually(demo, message, history_complete=True, attempt_count=1)
        assert waiting["next_retry_at"] is not None
        (attempt,) = waiting["attempts"]
        assert attempt.pop("at").endswith("Z")
        assert attempt == {
            "cycle": 1, "attempt": 1, "outcome": "failed", "channel": "webhook", "code": 503, "latency_ms": 12,
            "error": "busy",
        }  # fmt: skip

        async def due() -> bool:
            return (await worker.log.pump())[0] == 1

        await wait_until(due)
        await worker.attempt("done")
        done = await eventually(demo, message, history_complete=True, status="delivered")
    assert done["attempt_count"] == 2
    assert [a["outcome"] for a in done["attempts"]] == ["failed", "delivered"]
    assert (done["queued_at"], done["next_retry_at"], done["parked"]) == (given["queued_at"], None, False)
    assert done["delivered_at"] is not None


async def test_failed_and_parked(world, mariadb):
    """A failed message says why; a parked one is queued, with its mark and its reason."""
    async with projected(world, mariadb) as demo:
        one = (await demo.submit()).json["message_id"]
        await Worker(world, one).attempt("failed", code=410)
        failed = await eventually(demo, one, history_complete=True, status="failed", reason="refused")
        assert failed["failed_at"] is not None
        two = (await demo.submit()).json["message_id"]
        await Worker(world, two).attempt("park")
        parked = await eventually(demo, two, parked=True, reason="crashed 3 workers")
        assert parked["status"] == "queued"


async def test_what_redis_has_forgotten_is_in_the_read_model(world, mariadb):
    """After the outcome record is gone, the database answers."""
    async with projected(world, mariadb) as demo:
        message = (await demo.submit()).json["message_id"]
        await Worker(world, message).attempt("done")
        before = await eventually(demo, message, history_complete=True, status="delivered")
        raw = ids.parse(message)
        done = world.keys.partitions[ids.partition(raw)].done(ids.created_ms(raw))
        await world.redis.delete(done)
        assert (await demo.get(path(message))).json == before
        unknown = await demo.get(path(UNKNOWN))
        assert (unknown.status, unknown.json["error"]) == (404, "not_found")


async def test_others_messages_are_not_found(world, mariadb):
    """Another client's message looks exactly like none, in Redis and in the database."""
    await world.producer("other")
    async with projected(world, mariadb) as demo:
        other = Caller(demo.port, world.contexts["other"])
        message = (await demo.submit()).json["message_id"]
        await eventually(demo, message, history_complete=True)
        for _ in range(2):
            theirs, none = await other.get(path(message)), await other.get(path(UNKNOWN))
            assert (theirs.status, none.status) == (404, 404)
            assert {k: v for k, v in theirs.json.items() if k != "correlation_id"} == {
                k: v for k, v in none.json.items() if k != "correlation_id"
            }
            raw = ids.parse(message)
            await world.redis.hdel(world.keys.partitions[ids.partition(raw)].open, raw)


async def test_mysql_away(world, demo):
    """What Redis knows is answered: queued, waiting, delivered, failed; the rest is 503, never a 404."""
    message = (await demo.submit()).json["message_id"]
    queued = (await demo.get(path(message))).json
    assert (queued["status"], queued["attempts"], queued["history_complete"]) == ("queued", [], False)
    worker = Worker(world, message)
    await worker.attempt("retry")
    assert (await demo.get(path(message))).json["next_retry_at"] is not None
    other = (await demo.submit()).json["message_id"]
    await Worker(world, other).attempt("failed")
    assert (await demo.get(path(other))).json["status"] == "failed"
    unknown = await demo.get(path(UNKNOWN))
    assert (unknown.status, unknown.json["error"]) == (503, "store_unavailable")


async def test_mysql_down_is_no_404(world, own_mariadb):
    """A database that was there and is not: 200 from Redis, 503 for what only it would know."""
    schema.migrate(own_mariadb.url)
    queries = Queries(own_mariadb.url)
    async with world.gateway(read_model=queries) as gateway:
        demo = Caller(gateway.port, world.contexts["demo"])
        message = (await demo.submit()).json["message_id"]
        assert (await demo.get(path(message))).status == 200
        assert (await demo.get(path(UNKNOWN))).status == 404
        await own_mariadb.kill()
        assert (await demo.submit()).status == 202
        assert (await demo.get(path(message))).json["status"] == "queued"
        assert (await demo.get(path(UNKNOWN))).status == 503
        await own_mariadb.start()

        async def back() -> bool:
            return (await demo.get(path(UNKNOWN))).status == 404

        await wait_until(back)
    await queries.close()


@pytest.mark.parametrize(
    "nobody", ["00000000-0000-4000-8000-000000000000", "01a20137-b225-7000-b823-40bc8b1299ff"]
)
async def test_an_id_that_no_message_can_have(demo, nobody):
    """Of another kind, or of a partition that does not exist: unknown as any other, 404."""
    answer = await demo.get(path(nobody))
    assert (answer.status, answer.json["error"]) == (404, "not_found")


@pytest.mark.parametrize("bad", ["x", "7", "batch"])
async def test_what_is_no_id(demo, bad):
    """400 that says what an id is."""
    answer = await demo.get(path(bad))
    assert (answer.status, answer.json["error"]) == (400, "validation_error")
    assert answer.json["details"][0]["field"] == "message_id"
