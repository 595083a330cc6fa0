"""Idempotency keys: one message for a key, and the same answer again."""

from __future__ import annotations

import asyncio

import pytest

from support import log
from support.calling import MESSAGE, Caller

KEY = {"idempotency-key": "order 4711"}


async def count(world) -> int:
    return sum([len(await log.history(world.redis, stream)) for stream in world.keys.partitions])


async def test_the_same_request_again_gives_the_same_answer(world, demo):
    """The very same body, with a header that says so; one event."""
    first = await demo.submit(headers=KEY)
    again = await demo.submit(headers=KEY)
    assert (first.status, again.status) == (202, 202)
    assert first.body == again.body
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert await count(world) == 1


async def test_another_spelling_is_the_same_request(world, demo):
    """Order of keys, white space and escapes do not matter; ciphertexts differ every time, the request does not."""
    one = b'{"sender_number":"+4915200000000","message_body":"caf\xc3\xa9","metadata":{"a":1,"b":[2]}}'
    other = b'{ "metadata":{"b":[2.0],"a":1}, "message_body":"caf\\u00e9", "sender_number":"+4915200000000"}'
    first = await demo.submit(one, headers=KEY)
    again = await demo.submit(other, headers=KEY)
    assert again.json == first.json
    assert await count(world) == 1


@pytest.mark.parametrize(
    "change", [{"message_body": "other"}, {"metadata": {}}, {"sender_number": "+4915200000001"}]
)
async def test_another_request_with_the_same_key_conflicts(world, demo, change):
    """409, and nothing is appended."""
    await demo.submit(headers=KEY)
    answer = await demo.submit(MESSAGE | change, headers=KEY)
    assert (answer.status, answer.json["error"]) == (409, "idempotency_conflict")
    assert await count(world) == 1


async def test_keys_belong_to_their_client(world):
    """Two clients may use the same key."""
    await world.producer("other")
    async with world.gateway() as gateway:
        one = await Caller(gateway.port, world.contexts["demo"]).submit(headers=KEY)
        two = await Caller(gateway.port, world.contexts["other"]).submit(headers=KEY)
    assert (one.status, two.status) == (202, 202)
    assert one.json["message_id"] != two.json["message_id"]


async def test_the_same_key_at_once_is_one_message(world, demo):
    """Twenty at once: one event, one id, told to all."""
    answers = await asyncio.gather(*(demo.submit(headers=KEY) for _ in range(20)))
    assert {answer.status for answer in answers} == {202}
    assert len({answer.json["message_id"] for answer in answers}) == 1
    assert await count(world) == 1


async def test_two_gateways_agree(world):
    """A key used at one gateway is known at the other, by the partition that it names."""
    async with world.gateway() as here, world.gateway() as there:
        one = await Caller(here.port, world.contexts["demo"]).submit(headers=KEY)
        two = await Caller(there.port, world.contexts["demo"]).submit(headers=KEY)
    assert one.json == two.json
    assert await count(world) == 1


async def test_a_record_expires_after_a_day(world, demo):
    """24 hours by default, and the record says neither the key nor the request."""
    await demo.submit(headers=KEY)
    (record,) = await world.redis.keys(f"*{world.log_name}*:idem:*")
    assert b"4711" not in record
    assert 86_000 < await world.redis.ttl(record) <= 86_400


@pytest.mark.parametrize("key", ["", "x" * 256, "caf\xe9", "a\tb"])
async def test_a_key_that_is_none_is_refused(demo, key):
    """400 that names the header."""
    answer = await demo.submit(headers={"idempotency-key": key})
    assert (answer.status, answer.json["error"]) == (400, "validation_error")
    assert answer.json["details"][0]["field"] == "Idempotency-Key"


async def test_the_longest_key_is_taken(demo):
    assert (await demo.submit(headers={"idempotency-key": "x" * 255})).status == 202
