"""The inbox channel: workers that deliver to the real server over mTLS."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from broker import clock
from broker.domain import ids
from broker.domain.message import Accepted, OwnSideAway
from broker.embedded.valkey import free_port
from broker.events.appender import Draft
from broker.events.open_messages import FinishedMessage, look_up
from broker.events.sealing import Plain
from broker.events.types import MessageSubmitted
from broker.services.delivery.channels.base import Delivery
from broker.services.delivery.channels.inbox import PATH, Inbox
from broker.services.delivery.worker import Worker
from support import log as logs
from support.pki import Pki
from support.rig import QUICK
from support.serving import listening
from support.waiting import wait_until
from support.world import World


@pytest.fixture(scope="module")
def pki(tmp_path_factory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
async def world(valkey, redis, pki, tmp_path: Path, log_name: str) -> World:
    made = World(valkey.url, redis, pki, tmp_path, log_name)
    made.settings = msgspec.structs.replace(made.settings, server_port=free_port())
    return await made.create()


@contextlib.asynccontextmanager
async def working(world, *, context=None):
    """A worker with the inbox as its only channel, and its parts."""
    async with world.parts() as parts:
        channel = Inbox(world.settings.inbox_url, context or world.contexts["worker"], timeout=5.0)
        worker = Worker(
            redis=parts["redis"], redis_url=world.url, keys=parts["keys"], identity=parts["identity"],
            clients=parts["trust"], opener=parts["sealer"], channels={"inbox": channel},
            limits=msgspec.structs.replace(QUICK, default_channel="inbox"),
        )  # fmt: skip
        stop = asyncio.Event()
        task = asyncio.create_task(worker.run(stop))
        try:
            yield worker, parts
        finally:
            stop.set()
            await task


async def submit(parts, count: int) -> list[bytes]:
    drafts = []
    for _ in range(count):
        message_id = ids.new(0)
        sealed = parts["sealer"].seal("demo", message_id, "+4915200000000", "hello")
        event = MessageSubmitted("demo", sealed, parts["sealer"].number_hash("demo", "+4915200000000"))
        drafts.append(Draft(message_id, "demo", event, "client:demo", clock.now_ms()))
    await parts["appender"].append(drafts)
    return [one.message_id for one in drafts]


async def finished(world, messages) -> list[FinishedMessage] | None:
    found = await look_up(world.redis, world.keys, messages)
    return found if all(isinstance(one, FinishedMessage) for one in found) else None


async def test_messages_reach_the_server_in_batches(world):
    """The server takes what open bears out; the worker records one attempt and the outcome."""
    async with world.server(), working(world) as (_, parts):
        messages = await submit(parts, 300)
        done = await wait_until(lambda: finished(world, messages))
    assert {(one.outcome, one.attempts) for one in done} == {("delivered", 1)}
    tags = await logs.tags(world.redis, world.keys.partitions[0], messages[0])
    assert tags == ["MessageSubmitted", "DeliveryAttempted", "Delivered"]


@pytest.mark.case("TC-W-008")
async def test_the_server_away_and_back(world):
    """The server stopped, restarted: messages wait without an attempt counted, and are delivered once it is back."""
    async with working(world) as (worker, parts):
        messages = await submit(parts, 50)
        await wait_until(lambda: "channel:inbox" in worker.waits_for)
        assert "cannot be reached" in worker.waits_for["channel:inbox"]
        async with world.server():
            await wait_until(lambda: finished(world, messages))
            await wait_until(lambda: worker.waits_for == {})
        more = await submit(parts, 50)
        await wait_until(lambda: "channel:inbox" in worker.waits_for)
        async with world.server():
            done = await wait_until(lambda: finished(world, messages + more))
    assert {(one.outcome, one.attempts) for one in done} == {("delivered", 1)}


async def test_a_worker_whose_certificate_is_refused_waits(world):
    """A certificate of the wrong role is our own side's trouble: it opens the breaker and fails no message."""
    async with world.server(), working(world, context=world.contexts["demo"]) as (worker, parts):
        messages = await submit(parts, 5)
        await wait_until(lambda: "the server answered 403" in worker.waits_for.get("channel:inbox", ""))
    states = await look_up(world.redis, world.keys, messages)
    assert {state.attempts for state in states} == {0}


# -- What the server's answers mean -----------------------------------------------------------------------


class Fake:
    """A server that answers as told, over real TLS."""

    def __init__(self) -> None:
        self.respond = None
        self.bodies = []
        self.app = Starlette(routes=[Route(PATH, self.deliver, methods=["POST"])])

    async def deliver(self, request):
        body = msgspec.json.decode(await request.body())
        self.bodies.append(body)
        return self.respond(body)


@pytest.fixture
async def fake(pki):
    made = Fake()
    async with listening(made.app, context=pki.server_context()) as running:
        made.channel = Inbox(f"https://localhost:{running.port}", pki.client_context(), timeout=5.0)
        yield made
        await made.channel.aclose()


def deliveries(count: int) -> list[Delivery]:
    return [
        Delivery(ids.new(0), "demo", Plain("+49", "x"), 1, 2, "wabc", f"{number}-0", 3, 0)
        for number in range(count)
    ]


async def answers(channel, sent) -> list:
    found = {}
    await channel.deliver(sent, lambda one, answer: found.__setitem__(one.message_id, answer))
    return [found[one.message_id] for one in sent]


async def test_what_is_queued_as_the_last_request_ends_is_sent(fake):
    """⚠ A delivery that comes in the very step in which the last sender ended does not wait for another to come."""
    fake.respond = lambda body: JSONResponse(
        {"results": [{"message_id": one["message_id"], "status": "delivered"} for one in body["deliveries"]]}
    )
    for _ in range(3):
        async with asyncio.timeout(10):
            assert await answers(fake.channel, deliveries(1)) == [Accepted()]


async def test_a_delivery_names_its_claim(fake):
    """The server is told which claim is meant, so that it can tell a lost one; no plain text is sent."""
    fake.respond = lambda body: JSONResponse(
        {"results": [{"message_id": one["message_id"], "status": "delivered"} for one in body["deliveries"]]}
    )
    [one] = deliveries(1)
    assert await answers(fake.channel, [one]) == [Accepted()]
    assert fake.bodies == [
        {
            "deliveries": [
                {
                    "message_id": ids.text(one.message_id),
                    "worker_id": "wabc",
                    "claim": {"entry": "0-0", "count": 3},
                    "cycle": 1,
                    "attempt": 2,
                }
            ]
        }
    ]


async def test_many_go_out_in_bounded_batches(fake):
    """1,000 messages are a handful of requests; each message has its own answer."""
    fake.respond = lambda body: JSONResponse(
        {"results": [{"message_id": one["message_id"], "status": "delivered"} for one in body["deliveries"]]}
    )
    assert await answers(fake.channel, deliveries(1000)) == [Accepted()] * 1000
    assert [len(body["deliveries"]) for body in fake.bodies] == [200] * 5


@pytest.mark.parametrize(
    ("response", "scope"),
    [
        (lambda _: Response(status_code=500), "channel"),
        (lambda _: Response(status_code=503), "channel"),
        (lambda _: Response(status_code=401), "channel"),
        (lambda _: Response(b"<html>", 200), "channel"),
        (lambda _: JSONResponse({"results": []}), "message"),
        (
            lambda body: JSONResponse(
                {
                    "results": [
                        {"message_id": one["message_id"], "status": "error", "error": "conflict"}
                        for one in body["deliveries"]
                    ]
                }
            ),
            "message",
        ),
        (
            lambda body: JSONResponse(
                {
                    "results": [
                        {"message_id": one["message_id"], "status": "error", "error": "log_unavailable"}
                        for one in body["deliveries"]
                    ]
                }
            ),
            "channel",
        ),
    ],
)
async def test_no_answer_of_our_own_server_counts_as_an_attempt(fake, response, scope):
    """⚠ Whatever the server says instead of delivered, the recipient did not say it."""
    fake.respond = response
    [answer] = await answers(fake.channel, deliveries(1))
    assert isinstance(answer, OwnSideAway)
    assert answer.scope == scope


async def test_a_cancelled_delivery_is_not_sent(fake):
    """A claim lost before the request goes out is left out of it."""
    kept, dropped = deliveries(2)
    dropped.cancel()
    fake.respond = lambda body: JSONResponse(
        {"results": [{"message_id": one["message_id"], "status": "delivered"} for one in body["deliveries"]]}
    )
    found = []
    await fake.channel.deliver([kept, dropped], lambda one, _: found.append(one))
    assert found == [kept]
    assert len(fake.bodies[0]["deliveries"]) == 1
