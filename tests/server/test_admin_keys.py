"""POST /admin/clients/{client_id}/keys/rotate, over real sockets."""

from __future__ import annotations

import asyncio

from broker.events import codec
from broker.events.sealing import key_number
from support import log
from support.reading import BODY, NUMBER
from support.waiting import wait_until

PATH = "/admin/clients/demo/keys/rotate"


async def number_of(reading, message_id: str) -> int:
    """The key number that sealed a message, as the table has it."""
    rows = await reading.store.select(
        "SELECT encrypted_body FROM messages WHERE message_id=%s", (message_id,)
    )
    return key_number(rows[0]["encrypted_body"])


async def test_a_fresh_key(reading):
    """New messages use it, old ones stay readable, a number is found under both; the history says who did it."""
    before = await reading.register("demo")
    answer = await reading.post("admin", PATH)
    assert (answer.status, answer.json) == (200, {"client_id": "demo", "key_number": 2})
    after = await reading.register("demo")
    await reading.caught_up()
    assert [await number_of(reading, each) for each in (before, after)] == [1, 2]
    for message_id in (before, after):
        shown = await reading.get("admin", f"/portal/messages/{message_id}?decrypt=true")
        assert shown.json["message_body"] == BODY
    found = await reading.get("reader", f"/portal/messages?search=%2B{NUMBER[1:]}")
    assert {each["message_id"] for each in found.json["messages"]} == {before, after}
    profile = (await reading.get("admin", "/portal/profile")).json
    events = (await reading.get("auditor", "/audit/events?type=KeyRotated")).json["events"]
    assert [(each["data"]["state"], each["actor"]) for each in events] == [
        ("active", f"user:{profile['user_id']}"),
        ("added", f"user:{profile['user_id']}"),
    ]


async def test_while_messages_come(reading):
    """Nobody is refused while keys change, however often."""
    stop = asyncio.Event()
    sent: list[str] = []

    async def flow() -> None:
        while not stop.is_set():
            sent.append(await reading.register("demo"))

    flowing = asyncio.create_task(flow())
    for number in (2, 3):
        assert (await reading.post("admin", PATH)).json["key_number"] == number
    await wait_until(lambda: len(sent) > 20)
    stop.set()
    await flowing
    await reading.caught_up()
    numbers = [await number_of(reading, each) for each in sent]
    assert numbers == sorted(numbers)
    assert numbers[-1] == 3


async def test_of_nobody(reading):
    """Unknown and erased clients: 404; readers and auditors: 403."""
    for name in ("nobody", "No%20Name"):
        answer = await reading.post("admin", f"/admin/clients/{name}/keys/rotate")
        assert (answer.status, answer.json["error"]) == (404, "not_found")
    for name in ("reader", "auditor"):
        assert (await reading.post(name, PATH)).status == 403
    await reading.world.clients.erase_client("demo", "asked for", actor="system")
    assert (await reading.post("admin", PATH)).status == 404
    tags = await log.tags(reading.world.redis, reading.world.keys.control)
    assert "KeyRotated" not in tags


async def test_nothing_of_a_key_is_shown(reading):
    """Neither the answer nor the control stream holds a key."""
    answer = await reading.post("admin", PATH)
    wrapped = await reading.world.registry.client_keys("demo")
    assert wrapped.hex().encode() not in answer.body
    for tag, fields in await log.history(reading.world.redis, reading.world.keys.control):
        if tag == "KeyRotated":
            assert len(fields[b"d"]) < 40
            assert codec.decode(tag, fields[b"d"]).key_id == "2"
