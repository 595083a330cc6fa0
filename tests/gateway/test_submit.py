"""POST /api/v1/messages over real TLS, into a real log."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from broker.domain import ids
from broker.events import codec, envelope
from broker.events.sealing import ClientKeys, Sealer
from support import log
from support.calling import MESSAGE, NUMBER, Caller
from support.serving import connection
from support.waiting import wait_until


async def submitted(world) -> list[tuple[bytes, object, object]]:
    """Subject, event and envelope of every MessageSubmitted in the log."""
    return [
        (fields[b"s"], codec.decode(tag, fields[b"d"]), envelope.decode(fields[b"m"]))
        for stream in world.keys.partitions
        for tag, fields in await log.history(world.redis, stream)
        if tag == "MessageSubmitted"
    ]


def problem(answer, status: int, code: str) -> dict:
    """The problem document, with all that the contract says it has."""
    assert answer.status == status, (answer.status, answer.body)
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json
    assert document["error"] == code
    assert document["status"] == status
    assert document.keys() >= {"type", "title", "detail", "message", "details", "correlation_id"}
    assert document["correlation_id"] == answer.headers["x-correlation-id"]
    return document


@pytest.mark.case("TC-P-001")
async def test_a_valid_message_is_durable_when_the_202_arrives(world, demo):
    """202 with id, client, status, time and position; the log holds the event at that position."""
    answer = await demo.submit(headers={"x-correlation-id": "order-7"})
    assert answer.status == 202, answer.body
    given = answer.json
    assert given.keys() == {"message_id", "client_id", "status", "queued_at", "position"}
    assert (given["client_id"], given["status"]) == ("demo", "queued")
    assert answer.headers["x-correlation-id"] == "order-7"
    ((subject, event, meta),) = await submitted(world)
    assert ids.text(subject) == given["message_id"]
    assert event.client_id == "demo"
    assert (meta.actor, meta.correlation_id) == ("client:demo", "order-7")
    number = ids.partition(subject)
    stream = world.keys.partitions[number]
    ((entry, _),) = await world.redis.xrange(stream.events)
    assert given["position"] == f"{number}:{entry.decode()}"


@pytest.mark.case("TC-M-013", "TC-M-014")
async def test_nothing_plain_reaches_redis(world, demo):
    """Body, number and metadata are sealed under the client's key, bound to id and client."""
    body = {"sender_number": NUMBER, "message_body": "a body of ours", "metadata": {"colour": "vermilion"}}
    assert (await demo.submit(body)).status == 202
    ((subject, event, _),) = await submitted(world)
    for key in await world.redis.keys(f"*{world.log_name}*"):
        dumped = await world.redis.dump(key)
        assert not any(plain in dumped for plain in (b"a body of ours", NUMBER[1:].encode(), b"vermilion"))
    wrapped = await world.registry.client_keys("demo")
    keys = ClientKeys.unwrap("demo", wrapped, world.keyring)
    plain = Sealer(world.keyring, lambda _: keys).unseal("demo", subject, event.sealed)
    assert (plain.sender_number, plain.message_body, plain.metadata) == tuple(body.values())


@pytest.mark.case("TC-P-002")
@pytest.mark.parametrize(
    "number",
    ["4915200000000", "+49 152 0000", "+49152abc", "+0123456789", "+123456", "+1234567890123456", "", "+"],
)
async def test_a_number_that_is_not_e164_is_refused(demo, number):
    """400 that names the field and what it takes."""
    document = problem(await demo.submit(MESSAGE | {"sender_number": number}), 400, "validation_error")
    (detail,) = document["details"]
    assert detail["field"] == "sender_number"
    assert "E.164" in detail["reason"]


@pytest.mark.case("TC-P-003")
@pytest.mark.parametrize("body", ["", "x" * 1001, " \t\n", "a\x00b", "\x1b[2J", "\x85"])
async def test_a_body_that_is_too_long_empty_or_has_controls_is_refused(demo, body):
    """400 that names the field."""
    document = problem(await demo.submit(MESSAGE | {"message_body": body}), 400, "validation_error")
    assert [detail["field"] for detail in document["details"]] == ["message_body"]


@pytest.mark.case("TC-P-003")
async def test_the_longest_body_is_taken(demo):
    """1000 characters, however many bytes they are."""
    assert (await demo.submit(MESSAGE | {"message_body": "\U0001f600" * 1000})).status == 202


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["sender_number", "message_body"]),
        ({"sender_number": 1, "message_body": None}, ["sender_number", "message_body"]),
        (MESSAGE | {"body": "x", "to": 1}, ["body", "to"]),
        (MESSAGE | {"metadata": []}, ["metadata"]),
        (MESSAGE | {"metadata": {"k": "x" * 4100}}, ["metadata"]),
        ({"sender_number": "1", "message_body": "", "metadata": {"k": "x" * 4100}},
         ["sender_number", "message_body", "metadata"]),
    ],
)  # fmt: skip
async def test_every_field_that_is_wrong_is_named(demo, body, fields):
    """Unknown fields are refused, and all faults are told at once."""
    document = problem(await demo.submit(body), 400, "validation_error")
    assert [detail["field"] for detail in document["details"]] == fields


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"nonsense", b'{"sender_number": NaN}', b"\xff\xfe{}", b'\xef\xbb\xbf{"a":1}',
        b'{"sender_number":"+4915200000000","sender_number":"+4915200000001","message_body":"x"}',
        b'{"sender_number":"+4915200000000","message_body":"\\ud800"}',
        b'{"sender_number":"+4915200000000","message_body":"\xc3\x28"}',
        b'{"metadata":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
    ],
)  # fmt: skip
async def test_what_is_no_strict_json_is_malformed(demo, raw):
    """Cut, not UTF-8, duplicate keys, lone surrogates, bottomless: 400 malformed_json."""
    problem(await demo.submit(raw), 400, "malformed_json")


@pytest.mark.parametrize("raw", [b"[]", b'"x"', b"7", b"null"])
async def test_json_that_is_no_object_is_not_valid(demo, raw):
    problem(await demo.submit(raw), 400, "validation_error")


async def test_ten_megabytes_are_too_large(demo):
    """413, told before all of it was read."""
    big = MESSAGE | {"message_body": "x" * 10_000_000}
    problem(await demo.submit(big), 413, "body_too_large")
    problem(await demo.post("/api/v1/messages/batch", {"messages": [big]}), 413, "body_too_large")


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", ""]
)
async def test_another_content_type_is_not_supported(demo, kind):
    problem(await demo.submit(headers={"content-type": kind}), 415, "unsupported_media_type")


async def test_a_charset_of_utf8_is_fine(demo):
    assert (await demo.submit(headers={"content-type": "Application/JSON; charset=UTF-8"})).status == 202


async def test_other_methods_and_paths(demo):
    """405 and 404 are problem documents too."""
    problem(await demo.get("/api/v1/messages"), 405, "method_not_allowed")
    problem(await demo.get("/api/v2/messages"), 404, "not_found")


@pytest.mark.case("TC-P-010")
async def test_concurrent_submissions_each_count_once(world, gateway, demo):
    """200 at once over many connections: 200 answers, 200 different ids, 200 events."""
    answers = await asyncio.gather(
        *(demo.submit(MESSAGE | {"message_body": f"number {n}"}) for n in range(200))
    )
    assert {answer.status for answer in answers} == {202}
    given = {answer.json["message_id"] for answer in answers}
    assert len(given) == 200
    assert {ids.text(subject) for subject, _, _ in await submitted(world)} == given


async def test_a_connection_is_kept(world, gateway, demo):
    """Many requests on one connection."""
    async with connection(gateway.port, world.contexts["demo"]) as raw:
        for _ in range(5):
            assert (await demo.submit(raw=raw)).status == 202


async def test_a_half_sent_request_leaves_nothing(world, gateway):
    """A client that leaves before its body is complete has submitted nothing, and harms nobody."""
    async with connection(gateway.port, world.contexts["demo"]) as raw:
        head = "POST /api/v1/messages HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        await raw.send(f"{head}content-length: 100\r\n\r\n{{".encode())
    assert (await Caller(gateway.port, world.contexts["demo"]).submit()).status == 202
    assert len(await submitted(world)) == 1


async def test_a_client_that_leaves_does_not_take_its_message_back(world, gateway):
    """A complete request is appended even when nobody waits for the answer."""
    content = msgspec.json.encode(MESSAGE)
    async with connection(gateway.port, world.contexts["demo"]) as raw:
        head = "POST /api/v1/messages HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        await raw.send(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)

    async def arrived():
        return len(await submitted(world)) == 1

    await wait_until(arrived)


async def test_a_stop_finishes_what_is_in_progress(world):
    """SIGTERM's way: requests that were sent get their 202 and are in the log."""
    async with world.gateway() as gateway:
        demo = Caller(gateway.port, world.contexts["demo"])
        tasks = [asyncio.create_task(demo.submit()) for _ in range(50)]
        await wait_until(lambda: any(task.done() for task in tasks))
        gateway.stop.set()
        await gateway.task
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    taken = [a.json["message_id"] for a in answers if not isinstance(a, BaseException) and a.status == 202]
    assert taken
    assert set(taken) <= {ids.text(subject) for subject, _, _ in await submitted(world)}


async def test_a_message_without_a_correlation_id_is_its_own_conversation(world, demo):
    """The answer's header is the message's id, and so is the correlation id of its events."""
    answer = await demo.submit()
    named = answer.json["message_id"].replace("-", "")
    assert answer.headers["x-correlation-id"] == named
    ((subject, _, meta),) = await submitted(world)
    assert meta.correlation is None
    assert envelope.conversation(meta, subject) == named
