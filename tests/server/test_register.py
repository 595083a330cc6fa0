"""POST /internal/messages/register: once, however often it is asked for."""

from __future__ import annotations

import asyncio
import hashlib
import hmac

import msgspec
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from broker import clock
from broker.domain import ids
from broker.events import codec, envelope
from broker.events.registration import Window
from broker.events.sealing import ClientKeys, Sealer
from support import log
from support.calling import NUMBER, Caller
from support.waiting import wait_until

PATH = "/internal/messages/register"
MESSAGE = {"client_id": "demo", "sender_number": NUMBER, "message_body": "hello"}


def named(world, partition: int = 0, **fields) -> dict:
    return MESSAGE | {"message_id": ids.text(ids.new(partition))} | fields


async def submitted(world) -> list[tuple[bytes, object]]:
    """Subject and event of every MessageSubmitted in the log."""
    return [
        (fields[b"s"], codec.decode(tag, fields[b"d"]))
        for stream in world.keys.partitions
        for tag, fields in await log.history(world.redis, stream)
        if tag == "MessageSubmitted"
    ]


@pytest.mark.case("TC-M-001")
async def test_a_message_is_registered_under_an_id_of_ours(world, internal):
    """Without an id the server makes one; the message is in the log when the answer arrives."""
    answer = await internal.post(PATH, MESSAGE)
    assert answer.status == 200, answer.body
    given = answer.json
    assert given.keys() == {"message_id", "client_id", "status", "queued_at"}
    assert (given["client_id"], given["status"]) == ("demo", "queued")
    ((subject, event),) = await submitted(world)
    assert ids.text(subject) == given["message_id"]
    assert event.client_id == "demo"


@pytest.mark.case("TC-M-013", "TC-M-014")
async def test_what_is_registered_is_sealed_and_its_number_hashed(world, internal):
    """The event holds no plain text: the body opens with the client's key only, the number is a keyed hash."""
    await internal.post(PATH, MESSAGE | {"message_body": "a secret of ours"})
    ((subject, event),) = await submitted(world)
    assert b"a secret" not in event.sealed
    assert NUMBER.encode() not in event.sealed
    wrapped = await world.registry.client_keys("demo")
    keys = ClientKeys.unwrap("demo", wrapped, world.keyring)
    sealer = Sealer(world.keyring, lambda _: keys)
    assert sealer.unseal("demo", subject, event.sealed).message_body == "a secret of ours"
    assert event.number_hash == sealer.number_hash("demo", NUMBER)
    assert len(event.number_hash.hex()) == 64


@pytest.mark.case("TC-M-013", "TC-M-014")
async def test_the_event_opens_with_aes_256_and_its_hash_is_of_sha_256(world, internal):
    """By the libraries alone: AES-GCM with the client's key of 256 bits, HMAC-SHA-256 of the number."""
    await internal.post(PATH, MESSAGE | {"message_body": "a secret of ours"})
    ((subject, event),) = await submitted(world)
    key = ClientKeys.unwrap("demo", await world.registry.client_keys("demo"), world.keyring).active
    assert len(key.data_key) * 8 == 256
    nonce, sealed = event.sealed[3:15], event.sealed[15:]
    plain = AESGCM(key.data_key).decrypt(nonce, sealed, subject + b"demo")
    assert msgspec.msgpack.decode(plain) == [NUMBER, "a secret of ours", None]
    for other in (bytes(32), key.number_key):
        with pytest.raises(InvalidTag):
            AESGCM(other).decrypt(nonce, sealed, subject + b"demo")
    assert event.number_hash == hmac.new(key.number_key, NUMBER.encode(), hashlib.sha256).digest()


@pytest.mark.case("TC-I-010", "TC-S-002")
@pytest.mark.parametrize("role", ["gateway", "worker", "internal"])
async def test_our_own_services_certificates_may_register(world, server, role):
    """The gateway's (and the worker's) own certificate is let in over mTLS, and named as the actor."""
    answer = await Caller(server.port, world.contexts[role]).post(PATH, MESSAGE)
    assert answer.status == 200, answer.body
    partition = world.keys.partitions[ids.partition(ids.parse(answer.json["message_id"]))]
    ((_, fields),) = await log.history(world.redis, partition)
    assert envelope.decode(fields[b"m"]).actor == f"{role}:{role}"


async def test_the_same_request_again_gives_the_same_answer(world, internal):
    """A known id is not appended again, and the answer is what it was."""
    request = named(world)
    first = await internal.post(PATH, request)
    again = await internal.post(PATH, request)
    assert first.status == again.status == 200
    assert again.json == first.json
    assert len(await submitted(world)) == 1


async def test_many_at_once_append_once(world, internal):
    """Concurrent registrations of one id leave one event, and all give the same answer."""
    request = named(world, partition=1)
    answers = await asyncio.gather(*(internal.post(PATH, request) for _ in range(20)))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    assert len(await submitted(world)) == 1


async def test_many_at_once_with_two_bodies_append_one_of_them(world, internal):
    """Concurrent registrations of two messages under one id: one wins everywhere, the other gets 409."""
    request = named(world)
    bodies = [request | {"message_body": text} for text in ("one", "two") * 8]
    answers = await asyncio.gather(*(internal.post(PATH, body) for body in bodies))
    assert sorted({answer.status for answer in answers}) == [200, 409]
    winners = {body["message_body"] for body, a in zip(bodies, answers, strict=True) if a.status == 200}
    assert len(winners) == 1
    assert len(await submitted(world)) == 1


@pytest.mark.parametrize("change", [{"message_body": "other"}, {"sender_number": "+4915200000001"}])
async def test_another_message_under_a_known_id_conflicts(world, internal, change):
    """A different body or number for a known id is a 409 and changes nothing."""
    request = named(world)
    await internal.post(PATH, request)
    answer = await internal.post(PATH, request | change)
    assert (answer.status, answer.json["error"]) == (409, "conflict")
    assert len(await submitted(world)) == 1


async def test_another_client_under_a_known_id_conflicts(world, internal):
    """An id belongs to one client."""
    await world.producer("other")
    request = named(world)
    await internal.post(PATH, request)
    # 400 until the server has followed the new client's registration.
    statuses = set()

    async def conflicts() -> bool:
        answer = await internal.post(PATH, request | {"client_id": "other"})
        statuses.add(answer.status)
        return answer.status == 409

    await wait_until(conflicts)
    assert statuses <= {400, 409}
    assert len(await submitted(world)) == 1


async def test_a_message_that_came_in_by_the_gateway_is_known(world, internal):
    """Its id gives its answer; another body is a 409, compared with the ciphertext itself."""
    async with world.gateway() as gateway:
        given = (await Caller(gateway.port, world.contexts["demo"]).submit()).json
    request = MESSAGE | {"message_id": given["message_id"]}
    same = await internal.post(PATH, request)
    assert same.status == 200
    assert same.json == {
        "message_id": given["message_id"], "client_id": "demo", "status": "queued", "queued_at": given["queued_at"],
    }  # fmt: skip
    assert (await internal.post(PATH, request | {"message_body": "other"})).status == 409
    assert len(await submitted(world)) == 1


async def test_a_finished_message_is_known(world, internal):
    """After its outcome a repeated registration still gives the same answer and appends nothing."""
    request = named(world)
    first = await internal.post(PATH, request)
    delivered = await internal.post(
        "/internal/messages/deliver", {"message_id": request["message_id"], "worker_id": "w1"}
    )
    assert delivered.status == 200
    assert (await internal.post(PATH, request)).json == first.json
    assert len(await submitted(world)) == 1


async def test_the_time_of_queueing_can_be_given(world, internal):
    """`queued_at` is taken over, in any offset; one in the future is refused."""
    answer = await internal.post(PATH, named(world, queued_at="2026-01-02T03:04:05.678+01:00"))
    assert answer.json["queued_at"] == "2026-01-02T02:04:05.678Z"
    for bad in ("tomorrow", clock.iso(clock.now_ms() + 3_600_000), "0001-01-01T00:00:00Z"):
        refused = await internal.post(PATH, named(world, queued_at=bad))
        assert refused.status == 400, bad
        assert refused.json["details"][0]["field"] == "queued_at"


@pytest.mark.parametrize("age_hours", [-1, 30])
async def test_an_unknown_id_from_another_time_is_refused(world, internal, age_hours):
    """An id so old that Redis may have forgotten it, or from the future, cannot be told from a new one: 400."""
    raw = bytearray(ids.new(0))
    raw[:6] = (clock.now_ms() - age_hours * 3_600_000).to_bytes(6, "big")
    answer = await internal.post(PATH, MESSAGE | {"message_id": ids.text(bytes(raw))})
    assert (answer.status, answer.json["details"][0]["field"]) == (400, "message_id")
    assert await submitted(world) == []


@pytest.mark.parametrize("kept", [60, 3600, 86_400, 172_800, 31_536_000])
def test_an_outcome_is_remembered_longer_than_an_id_may_be_old(kept):
    """⚠ What keeps an id from being registered twice after its message ended, however short outcomes are kept."""
    window = Window.within(kept * 1000)
    assert min(window.age_ms, window.ahead_ms) > 0
    assert window.age_ms + window.ahead_ms <= kept * 1000
    if kept >= 172_800:
        assert (window.age_ms, window.ahead_ms) == (24 * 3_600_000, 300_000)


async def test_no_message_is_registered_again_once_its_outcome_is_forgotten(world):
    """⚠ Where outcomes are kept for a minute, an id two minutes old is no new message: it may have been delivered."""
    settings = msgspec.structs.replace(world.settings, outcomes_kept=60.0)
    async with world.server(settings=settings) as server:
        internal = Caller(server.port, world.contexts["internal"])
        raw = bytearray(ids.new(0))
        raw[:6] = (clock.now_ms() - 120_000).to_bytes(6, "big")
        answer = await internal.post(PATH, MESSAGE | {"message_id": ids.text(bytes(raw))})
        assert answer.status == 400
        assert "within the last 30 seconds" in str(answer.json["details"])
        assert (await internal.post(PATH, named(world))).status == 200


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"client_id": "nobody"}, "client_id"),
        ({"client_id": "NOT A NAME"}, "client_id"),
        ({"client_id": 7}, "client_id"),
        ({"sender_number": "4915200000000"}, "sender_number"),
        ({"message_body": ""}, "message_body"),
        ({"message_body": "x" * 1001}, "message_body"),
        ({"message_id": "7"}, "message_id"),
        ({"message_id": "00000000-0000-4000-8000-000000000000"}, "message_id"),
        ({"domain": ""}, "domain"),
        ({"surprise": 1}, "surprise"),
    ],
)
async def test_what_is_not_valid_is_named(internal, change, field):
    """400 validation_error with the field."""
    answer = await internal.post(PATH, MESSAGE | change)
    assert (answer.status, answer.json["error"]) == (400, "validation_error"), answer.body
    assert [detail["field"] for detail in answer.json["details"]] == [field]
