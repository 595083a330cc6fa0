"""POST /api/v1/messages/batch: one result each, in order."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import pytest

from broker.domain import ids
from broker.errors import LogUnavailable
from broker.services.gateway import parsing
from broker.services.gateway.batch import IN_FLIGHT_OF_ONE
from support import log
from support.calling import MESSAGE, Caller
from support.serving import connection
from support.waiting import wait_until

PATH = "/api/v1/messages/batch"


async def subjects(world) -> list[str]:
    return [
        ids.text(fields[b"s"])
        for stream in world.keys.partitions
        for _, fields in await log.history(world.redis, stream)
    ]


async def test_a_batch_is_taken_in_order_in_one_partition(world, demo):
    """202 with a result each; without keys all of it is one group."""
    messages = [MESSAGE | {"message_body": f"number {n}"} for n in range(1000)]
    answer = await demo.post(PATH, {"messages": messages})
    assert answer.status == 202, answer.body
    results = answer.json["results"]
    assert (answer.json["accepted"], answer.json["refused"]) == (1000, 0)
    assert {result["status"] for result in results} == {"queued"}
    given = [result["message_id"] for result in results]
    assert await subjects(world) == given
    assert len({result["position"].split(":")[0] for result in results}) == 1


async def test_ndjson_is_taken_too(world, demo):
    """One document a line, blank lines left out."""
    raw = b"\n".join(msgspec.json.encode(MESSAGE | {"message_body": str(n)}) for n in range(3)) + b"\n\n"
    answer = await demo.post(PATH, raw, headers={"content-type": "application/x-ndjson"})
    assert (answer.status, answer.json["accepted"]) == (202, 3)
    assert len(await subjects(world)) == 3


@pytest.mark.parametrize("kind", ["application/json", "application/x-ndjson"])
async def test_what_is_not_valid_is_refused_alone(world, demo, kind):
    """207: the good ones are queued, the bad ones say which field and why."""
    items = [
        MESSAGE,
        MESSAGE | {"sender_number": "1"},
        7,
        MESSAGE | {"x": 1},
        MESSAGE | {"idempotency_key": ""},
        MESSAGE,
    ]
    if kind == "application/json":
        raw = msgspec.json.encode({"messages": items})
    else:
        raw = b"\n".join(msgspec.json.encode(item) for item in items)
    answer = await demo.post(PATH, raw, headers={"content-type": kind})
    assert answer.status == 207
    results = answer.json["results"]
    assert [r["status"] for r in results] == ["queued", "error", "error", "error", "error", "queued"]
    assert [r["error"] for r in results[1:5]] == ["validation_error"] * 4
    assert [r["details"][0]["field"] for r in results[1:5]] == ["sender_number", "", "x", "idempotency_key"]
    assert len(await subjects(world)) == 2


async def test_a_malformed_line_is_refused_alone(demo):
    """Each line of NDJSON is a document of its own."""
    raw = msgspec.json.encode(MESSAGE) + b'\n{"sender_number":\n' + msgspec.json.encode(MESSAGE)
    answer = await demo.post(PATH, raw, headers={"content-type": "application/x-ndjson"})
    assert answer.status == 207
    assert [r.get("error") for r in answer.json["results"]] == [None, "malformed_json", None]


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (b"{", 400, "malformed_json"),
        (b"[]", 400, "validation_error"),
        (b"{}", 400, "validation_error"),
        (b'{"messages":[]}', 400, "validation_error"),
        (b'{"messages":{}}', 400, "validation_error"),
        (b'{"messages":[],"more":1}', 400, "validation_error"),
        (b'{"messages":[' + b"1," * 1000 + b"1]}", 400, "validation_error"),
        (b'{"messages":[{"message_body":"a","message_body":"b"}]}', 400, "malformed_json"),
    ],
)
async def test_what_is_no_batch_is_refused_whole(world, demo, raw, status, code):
    answer = await demo.post(PATH, raw)
    assert (answer.status, answer.json["error"]) == (status, code)
    assert await subjects(world) == []


async def test_more_lines_than_a_batch_takes(demo):
    raw = b"{}\n" * 1001
    answer = await demo.post(PATH, raw, headers={"content-type": "application/x-ndjson"})
    assert (answer.status, answer.json["error"]) == (400, "validation_error")


async def test_items_have_keys_of_their_own(world, demo):
    """Replayed items say so, a reused key is that item's conflict, the same key twice in a batch is one message."""
    keyed = [MESSAGE | {"idempotency_key": f"k{n}"} for n in range(4)]
    first = await demo.post(PATH, {"messages": [*keyed, keyed[0]]})
    assert first.status == 202
    results = first.json["results"]
    assert results[4]["message_id"] == results[0]["message_id"]
    assert [r["replayed"] for r in results] == [False] * 4 + [True]
    again = await demo.post(PATH, {"messages": [keyed[1], keyed[2] | {"message_body": "other"}, MESSAGE]})
    assert again.status == 207
    replayed, conflict, fresh = again.json["results"]
    assert (replayed["message_id"], replayed["replayed"]) == (results[1]["message_id"], True)
    assert conflict["error"] == "idempotency_conflict"
    assert fresh["status"] == "queued"
    assert len(await subjects(world)) == 5


async def test_a_key_is_the_same_for_single_messages_and_batches(world, demo):
    """An item's key and the header name the same thing."""
    single = await demo.submit(headers={"idempotency-key": "k"})
    batch = await demo.post(PATH, {"messages": [MESSAGE | {"idempotency_key": "k"}]})
    assert batch.json["results"][0]["message_id"] == single.json["message_id"]
    assert len(await subjects(world)) == 1


async def test_a_header_key_on_a_batch_is_refused(world, demo):
    """It would promise what it does not do."""
    answer = await demo.post(PATH, {"messages": [MESSAGE]}, headers={"idempotency-key": "k"})
    assert (answer.status, answer.json["details"][0]["field"]) == (400, "Idempotency-Key")
    assert await subjects(world) == []


async def test_a_partition_that_is_away_fails_its_items_only(world, demo, gateway):
    """207 with `log_unavailable` for the items of that partition; all away is a 503."""
    messages = [MESSAGE | {"idempotency_key": f"key {n}"} for n in range(40)]
    broken = world.keys.partitions[1]
    await world.redis.hset(broken.meta, "refused", "for this test")
    answer = await demo.post(PATH, {"messages": messages})
    assert answer.status == 207
    codes = {result.get("error") for result in answer.json["results"]}
    assert codes == {None, LogUnavailable.code}
    assert len(await subjects(world)) == answer.json["accepted"] > 0
    await world.redis.hset(world.keys.partitions[0].meta, "refused", "for this test")
    whole = await demo.post(PATH, {"messages": messages})
    assert (whole.status, whole.json["error"]) == (503, "log_unavailable")
    assert int(whole.headers["retry-after"]) >= 1


async def test_many_batches_at_once(world, demo):
    """Each gets its own answer; nothing is lost or doubled."""
    batches = [{"messages": [MESSAGE | {"message_body": f"{b} {n}"} for n in range(100)]} for b in range(10)]
    answers = await asyncio.gather(*(demo.post(PATH, batch) for batch in batches))
    given = [result["message_id"] for answer in answers for result in answer.json["results"]]
    assert len(set(given)) == 1000
    assert set(await subjects(world)) == set(given)


async def test_a_huge_item_is_refused_alone(world, demo):
    """What is too large for a single message is so in a batch."""
    huge = MESSAGE | {"metadata": {"a": "x" * 65536}}
    for raw, kind in (
        (msgspec.json.encode({"messages": [huge, MESSAGE]}), "application/json"),
        (b"\n".join(map(msgspec.json.encode, [huge, MESSAGE])), "application/x-ndjson"),
    ):
        answer = await demo.post(PATH, raw, headers={"content-type": kind})
        assert answer.status == 207
        assert [r.get("error") for r in answer.json["results"]] == ["body_too_large", None]
    assert len(await subjects(world)) == 2


@pytest.mark.parametrize("lines", [False, True])
async def test_a_batch_that_takes_long_to_read_does_not_hold_up_the_others(monkeypatch, lines: bool):
    """Others get their turn between its items."""
    monkeypatch.setattr(parsing, "TURN_SECONDS", 0.0)
    items = [b"[" + b"[]," * 1000 + b"[]]"] * 50
    raw = b"\n".join(items) if lines else b'{"messages":[' + b",".join(items) + b"]}"
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    assert len(await parsing.batch(raw, lines=lines)) == 50
    assert turns >= 50
    task.cancel()


async def test_one_client_cannot_have_all_the_places(world):
    """Half-sent batches of one client leave room for another's."""
    await world.producer("other")
    async with world.gateway() as gateway, contextlib.AsyncExitStack() as stack:
        head = (
            f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n"
        )
        for _ in range(IN_FLIGHT_OF_ONE):
            held = await stack.enter_async_context(connection(gateway.port, world.contexts["demo"]))
            await held.send(head.encode())
        demo = Caller(gateway.port, world.contexts["demo"])

        async def refused() -> bool:
            return (await demo.post(PATH, {"messages": [MESSAGE]})).status == 503

        await wait_until(refused)
        other = Caller(gateway.port, world.contexts["other"])
        assert (await other.post(PATH, {"messages": [MESSAGE]})).status == 202
        await stack.aclose()

        async def taken() -> bool:
            return (await demo.post(PATH, {"messages": [MESSAGE]})).status == 202

        await wait_until(taken)
