"""POST /internal/messages/deliver and the status calls: one outcome, decided from Redis."""

from __future__ import annotations

import asyncio

import pytest

from broker import clock
from broker.domain import ids
from broker.events import codec, envelope
from broker.events.claims import Settlement
from broker.events.delivery_log import DeliveryLog
from broker.events.types import Delivered, MessageParked
from support import log
from support.calling import NUMBER, Caller

REGISTER = "/internal/messages/register"
DELIVER = "/internal/messages/deliver"
STATUS = "/internal/messages/status"


@pytest.fixture
async def message(internal) -> str:
    """The id of an open message."""
    answer = await internal.post(
        REGISTER, {"client_id": "demo", "sender_number": NUMBER, "message_body": "hello"}
    )
    return answer.json["message_id"]


def partition(world, message: str):
    return world.keys.partitions[ids.partition(ids.parse(message))]


async def events(world, message: str) -> list:
    """The message's events, decoded, oldest first."""
    raw = ids.parse(message)
    return [
        codec.decode(tag, fields[b"d"])
        for tag, fields in await log.history(world.redis, partition(world, message))
        if fields[b"s"] == raw
    ]


async def names(world, message: str) -> list[str]:
    return [type(event).__name__ for event in await events(world, message)]


async def claim(world, message: str):
    """A worker's claim on the message."""
    worker = DeliveryLog(
        world.redis, partition(world, message), world.identity, "w1", outcomes_kept_ms=log.OUTCOMES_KEPT_MS
    )
    await worker.ensure_group()
    (task,) = await worker.admit(await worker.read(10, world.redis, block_ms=1))
    return worker, task


@pytest.mark.case("TC-M-002")
async def test_a_direct_call_marks_a_message_delivered_once(world, internal, message):
    """200 with the time; again the same answer; one attempt and one outcome in the history."""
    body = {"message_id": message, "worker_id": "w1"}
    first = await internal.post(DELIVER, body)
    assert first.status == 200, first.body
    assert first.json["status"] == "delivered"
    assert (await internal.post(DELIVER, body)).json == first.json
    assert await names(world, message) == ["MessageSubmitted", "DeliveryAttempted", "Delivered"]
    (_, attempted, delivered) = await events(world, message)
    assert (attempted.channel, attempted.succeeded, attempted.attempt) == ("direct", True, 1)
    assert (delivered.cycle, delivered.attempt) == (1, 1)


async def test_concurrent_calls_leave_one_outcome(world, internal, message):
    """Twenty at once: one event, one answer."""
    body = {"message_id": message, "worker_id": "w1"}
    answers = await asyncio.gather(*(internal.post(DELIVER, body) for _ in range(20)))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    assert (await names(world, message)).count("Delivered") == 1


async def test_unknown_and_failed_messages(world, internal, message):
    """Unknown is 404, one that failed is 409."""
    for nobody in (ids.text(ids.new(0)), "00000000-0000-4000-8000-000000000000"):
        unknown = await internal.post(DELIVER, {"message_id": nobody, "worker_id": "w1"})
        assert (unknown.status, unknown.json["error"]) == (404, "not_found")
        unknown = await internal.post(STATUS, {"message_id": nobody, "status": "failed"})
        assert (unknown.status, unknown.json["error"]) == (404, "not_found")
    await internal.post(STATUS, {"message_id": message, "status": "failed", "error_message": "no"})
    failed = await internal.post(DELIVER, {"message_id": message, "worker_id": "w1"})
    assert (failed.status, failed.json["error"]) == (409, "conflict")
    assert (await names(world, message))[-1] == "Failed"


async def test_a_claimed_delivery_is_checked_but_not_written(world, internal, message):
    """With the worker's claim the server answers `delivered` and leaves the outcome to the worker."""
    _, task = await claim(world, message)
    delivery = {
        "message_id": message,
        "worker_id": "w1",
        "claim": {"entry": task.claim.position.entry_id, "count": task.claim.count},
        "cycle": 1,
        "attempt": 1,
    }
    answer = await internal.post(DELIVER, {"deliveries": [delivery]})
    assert answer.status == 200
    assert answer.json["results"][0]["status"] == "delivered"
    assert await names(world, message) == ["MessageSubmitted"]
    stale = await internal.post(DELIVER, {"deliveries": [delivery | {"attempt": 2}]})
    assert stale.json["results"][0]["error"] == "conflict"


async def test_a_direct_call_beats_the_worker_that_has_it_in_hand(world, internal, message):
    """The outcome is written once: the worker's own settlement finds the cycle ended."""
    worker, task = await claim(world, message)
    assert (await internal.post(DELIVER, {"message_id": message, "worker_id": "other"})).status == 200
    meta = envelope.encode(clock.now_ms(), "worker:w1")
    late = Settlement(
        kind="done", message_id=task.claim.message_id, client_id="demo", cycle=1, attempt=1, envelope=meta,
        claim=task.claim, event=Delivered("demo", 1, 1), outcome="delivered", at_ms=clock.now_ms(),
    )  # fmt: skip
    assert await worker.settle([late]) == [None]
    assert (await names(world, message)).count("Delivered") == 1


async def test_a_batch_answers_each_delivery(world, internal, message):
    """Good, unknown and malformed ones side by side, in order."""
    unknown = ids.text(ids.new(0))
    answer = await internal.post(
        DELIVER,
        {"deliveries": [{"message_id": id_, "worker_id": "w1"} for id_ in (unknown, message, "x", message)]},
    )
    assert answer.status == 200
    results = answer.json["results"]
    assert [r["status"] for r in results] == ["error", "delivered", "error", "delivered"]
    assert [r.get("error") for r in results] == ["not_found", None, "validation_error", None]
    assert results[1] == results[3]


async def test_a_parked_message_is_still_compared(world, internal):
    """Its ciphertext was moved out of the stream, which may be trimmed since: another body is a 409."""
    request = {"client_id": "demo", "sender_number": NUMBER, "message_body": "hello"}
    async with world.gateway() as gateway:
        sent = {"sender_number": NUMBER, "message_body": "hello"}
        message = (await Caller(gateway.port, world.contexts["demo"]).submit(sent)).json["message_id"]
    worker, task = await claim(world, message)
    parked = Settlement(
        kind="park", message_id=task.claim.message_id, client_id="demo", cycle=1, attempt=1,
        envelope=envelope.encode(clock.now_ms(), "worker:w1"), claim=task.claim,
        event=MessageParked("demo", 1, 0, "for this test"),
    )  # fmt: skip
    assert await worker.settle([parked]) != [None]
    await world.redis.xtrim(partition(world, message).events, maxlen=0, approximate=False)
    assert (await internal.post(REGISTER, request | {"message_id": message})).status == 200
    other = await internal.post(REGISTER, request | {"message_id": message, "message_body": "other"})
    assert (other.status, other.json["error"]) == (409, "conflict")
    assert (await internal.post(DELIVER, {"message_id": message, "worker_id": "w1"})).status == 200


@pytest.mark.case("TC-M-003")
@pytest.mark.parametrize("way", ["put", "post"])
async def test_status_updates_by_both_ways(world, internal, message, way):
    """`failed` and `delivered` end the cycle; the error is in the history."""

    async def update(**fields):
        if way == "put":
            return await internal.request("PUT", f"/internal/messages/{message}/status", fields)
        return await internal.post(STATUS, {"message_id": message, **fields})

    answer = await update(status="failed", attempt_count=1, error_message="unreachable")
    assert answer.status == 200, answer.body
    assert (answer.json["status"], answer.json["attempt_count"]) == ("failed", 1)
    (_, attempted, failed) = await events(world, message)
    assert (attempted.error, attempted.succeeded, failed.reason) == ("unreachable", False, "unreachable")
    again = await update(status="failed")
    assert (again.status, again.json) == (200, answer.json)
    for impossible in ("queued", "delivered"):
        refused = await update(status=impossible)
        assert (refused.status, refused.json["error"]) == (409, "conflict")


@pytest.mark.case("TC-M-003")
@pytest.mark.parametrize("way", ["put", "post"])
async def test_a_message_is_made_delivered_by_both_ways(world, internal, message, way):
    """`delivered` ends the cycle once: an attempt and the outcome in the history; again changes nothing."""

    async def update(status):
        fields = {"status": status, "attempt_count": 1}
        if way == "put":
            return await internal.request("PUT", f"/internal/messages/{message}/status", fields)
        return await internal.post(STATUS, {"message_id": message, **fields})

    answer = await update("delivered")
    assert answer.status == 200, answer.body
    assert (answer.json["status"], answer.json["attempt_count"]) == ("delivered", 1)
    again = await update("delivered")
    assert (again.status, again.json) == (200, answer.json)
    assert (await update("failed")).status == 409
    assert await names(world, message) == ["MessageSubmitted", "DeliveryAttempted", "Delivered"]
    (_, attempted, delivered) = await events(world, message)
    assert (attempted.succeeded, delivered.attempt) == (True, 1)


async def test_queued_with_one_more_attempt_schedules_the_next(world, internal, message):
    """`queued` with the attempts so far changes nothing; with one more it records it and plans a retry."""
    same = await internal.post(STATUS, {"message_id": message, "status": "queued", "attempt_count": 0})
    assert (same.status, same.json["next_retry_at"]) == (200, None)
    assert await names(world, message) == ["MessageSubmitted"]
    more = await internal.post(
        STATUS, {"message_id": message, "status": "queued", "attempt_count": 1, "error_message": "busy"}
    )
    assert (more.status, more.json["attempt_count"]) == (200, 1)
    assert more.json["next_retry_at"] is not None
    assert await names(world, message) == ["MessageSubmitted", "DeliveryAttempted", "RetryScheduled"]
    repeated = await internal.post(STATUS, {"message_id": message, "status": "queued", "attempt_count": 1})
    assert repeated.json == more.json


async def test_attempts_that_do_not_add_up(world, internal, message):
    """More attempts than one more than are recorded, or a retry past the last, are 409."""
    skipped = await internal.post(STATUS, {"message_id": message, "status": "failed", "attempt_count": 3})
    assert skipped.status == 409
    for count in range(1, world.settings.max_attempts):
        done = await internal.post(
            STATUS, {"message_id": message, "status": "queued", "attempt_count": count}
        )
        assert done.status == 200
    last = await internal.post(
        STATUS, {"message_id": message, "status": "queued", "attempt_count": world.settings.max_attempts}
    )
    assert last.status == 409
    assert (await names(world, message)).count("DeliveryAttempted") == world.settings.max_attempts - 1


async def test_without_a_database_everything_internal_works(internal, message):
    """The server of these tests has no database at all: Redis decides."""
    assert (await internal.post(DELIVER, {"message_id": message, "worker_id": "w1"})).status == 200
