"""/admin/projections/{name}/rebuild, over real sockets: begun, followed, ended, and what is refused."""

from __future__ import annotations

import asyncio

import pytest

from broker.projections import catalog
from broker.projections.rebuild import progress, run
from support.readmodels import count, tables
from support.waiting import wait_until

PATH = "/admin/projections/{}/rebuild"


async def ended(reading, name: str) -> dict:
    """What is said once nothing runs any more."""

    async def last() -> dict | None:
        found = (await reading.get("admin", PATH.format(name))).json
        return found if found["state"] == "none" and found["last"] else None

    return await wait_until(last)


async def recorded(reading) -> list[tuple[str, str]]:
    rows = await reading.store.select(
        "SELECT type,actor FROM audit_log WHERE type LIKE 'Replay%' ORDER BY ms,seq"
    )
    return [(row["type"], row["actor"]) for row in rows]


async def test_rebuilt_by_a_request(reading):
    """Damaged rows are right again; who asked is on record, with the beginning and the end."""
    for _ in range(3):
        await reading.deliver(await reading.register("demo"))
    await reading.caught_up()
    before = (await tables(reading.store))["messages"]
    await reading.store.execute("UPDATE messages SET status='failed'")
    answer = await reading.post("admin", PATH.format("messages"))
    assert (answer.status, answer.json["visible"]) == (202, True), answer.body
    found = await ended(reading, "messages")
    assert found["last"] == {"outcome": "switched", "events": found["last"]["events"], "reason": None}
    assert found["last"]["events"] == 9
    assert (await tables(reading.store))["messages"] == before
    await reading.caught_up()
    people = await reading.store.select("SELECT user_id FROM users WHERE email='admin@example.com'")
    actor = f"user:{people[0]['user_id']}"
    assert await recorded(reading) == [("ReplayStarted", actor), ("ReplayFinished", actor)]
    # And it goes on from there.
    await reading.register("demo")
    await reading.caught_up()
    assert await count(reading.store, "messages") == 4


async def test_dry_run(reading):
    """How many events and about how long; nothing begins."""
    await reading.register("demo")
    await reading.caught_up()
    answer = await reading.post("admin", PATH.format("messages"), {"dry_run": True})
    assert answer.status == 200
    assert (answer.json["events"], answer.json["tables"]) == (1, ["messages"])
    assert answer.json["seconds"] > 0
    assert (await reading.get("admin", PATH.format("messages"))).json["state"] == "none"
    assert await recorded(reading) == []


async def test_one_at_a_time_and_ended(reading, monkeypatch):
    """A second one is a 409 while one runs; DELETE ends it; what waits for nobody is `interrupted` and taken up."""
    await reading.register("demo")
    await reading.caught_up()
    go_on, fill = asyncio.Event(), run.Rebuild._fill

    async def slow(self, builder):
        await go_on.wait()
        await fill(self, builder)

    monkeypatch.setattr(run.Rebuild, "_fill", slow)
    path = PATH.format("messages")
    assert (await reading.post("admin", path)).status == 202
    answer = await reading.get("admin", path)
    assert (answer.json["state"], answer.json["events"], answer.json["total"]) == ("running", 0, 1)
    answer = await reading.post("admin", path)
    assert (answer.status, answer.json["error"]) == (409, "conflict")
    answer = await reading.request("admin", "DELETE", path)
    assert answer.status == 200
    go_on.set()
    assert (await ended(reading, "messages"))["last"]["outcome"] == "cancelled"
    answer = await reading.request("admin", "DELETE", path)
    assert (answer.status, answer.json["error"]) == (404, "not_found")
    assert await progress.load(reading.store) == []


async def test_under_way_until_its_end_is_on_record(reading, monkeypatch):
    """Between the switch and the record of it, nobody is told that nothing runs, or that it was interrupted."""
    await reading.register("demo")
    await reading.caught_up()
    go_on, switched, recorded_end = asyncio.Event(), asyncio.Event(), run.recorded_end

    async def slow(*args) -> None:
        switched.set()
        await go_on.wait()
        await recorded_end(*args)

    monkeypatch.setattr(run, "recorded_end", slow)
    path = PATH.format("messages")
    assert (await reading.post("admin", path)).status == 202
    await switched.wait()
    assert await progress.load(reading.store) == []
    answer = await reading.get("admin", path)
    assert (answer.json["state"], answer.json["last"]) == ("switching", None)
    assert (await reading.post("admin", path)).status == 409
    go_on.set()
    assert (await ended(reading, "messages"))["last"]["outcome"] == "switched"


async def test_interrupted_by_a_stop(reading, world, url, monkeypatch):
    """A server that stops in the middle leaves a rebuild that another request takes up."""
    await reading.register("demo")
    await reading.caught_up()
    async with reading.store.session() as session:
        names = {
            stream.stream: world.identity.incarnations[stream.stream] for stream in world.keys.partitions
        }
        await run.shadow.create(session, ("messages",), run.shadow.NEXT)
        await progress.begin(session, "messages", catalog.version("messages"), names)
    path = PATH.format("messages")
    assert (await reading.get("admin", path)).json["state"] == "interrupted"
    assert (await reading.post("admin", path)).status == 202
    assert (await ended(reading, "messages"))["last"]["outcome"] == "switched"


async def test_interrupted_and_given_up(reading, world):
    """DELETE also ends a rebuild that nobody runs; that is on record, and nothing is left of it."""
    await reading.caught_up()
    async with reading.store.session() as session:
        await run.shadow.create(session, ("users",), run.shadow.NEXT)
        await progress.begin(session, "users", 1, {"control": world.identity.incarnations["control"]})
    answer = await reading.request("admin", "DELETE", PATH.format("users"))
    assert (answer.status, answer.json["rebuild"]["state"]) == (200, "none")
    await reading.caught_up()
    assert [kind for kind, _ in await recorded(reading)] == ["ReplayFinished"]
    assert await reading.store.select("SHOW TABLES LIKE 'users\\_\\_%'") == []


async def test_the_log_away(reading, world):
    """With a log that takes and gives nothing the answer is a 503 at once, and nothing was begun."""
    await reading.caught_up()
    await reading.get("admin", PATH.format("messages"))
    for stream in world.keys.streams:
        await world.redis.hset(stream.meta, "refused", "for a test")
    for body in (None, {"dry_run": True}):
        answer = await reading.post("admin", PATH.format("messages"), body)
        assert answer.status == 503, answer.body
    assert await progress.load(reading.store) == []


async def test_failed(reading, world):
    """An event that cannot be taken in ends the rebuild with its position; the table stays."""
    await reading.register("demo")
    await reading.caught_up()
    partition = world.keys.partitions[0]
    entry = await world.redis.xadd(
        partition.events, {"t": "Unheard", "s": b"x" * 16, "m": b"\x92\x01\xa1a", "d": b"\x90"}
    )
    assert (await reading.post("admin", PATH.format("messages"))).status == 202

    async def failed() -> dict | None:
        return (await reading.get("admin", PATH.format("messages"))).json["last"]

    found = await wait_until(failed)
    assert found["outcome"] == "failed"
    answer = await reading.post("admin", PATH.format("messages"), {"dry_run": True})
    assert (answer.status, answer.json["error"]) == (409, "conflict")
    assert f"0:{entry.decode()}" in answer.json["message"]
    assert f"0:{entry.decode()}" in found["reason"]
    assert await count(reading.store, "messages") == 1


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_unknown_read_model(reading, method):
    """404, with those that there are."""
    answer = await reading.request("admin", method, PATH.format("massages"))
    assert (answer.status, answer.json["error"]) == (404, "not_found")
    assert "messages, attempts, audit_log" in answer.json["detail"]


@pytest.mark.parametrize("body", [{"dry_run": 1}, {"really": True}, []])
async def test_bad_bodies(reading, body):
    """400 before anything begins."""
    answer = await reading.post("admin", PATH.format("messages"), body)
    assert (answer.status, answer.json["error"]) == (400, "validation_error")


async def test_only_admins(reading):
    """Auditors and users: 403."""
    for person in ("auditor", "reader"):
        for method in ("GET", "POST", "DELETE"):
            assert (await reading.request(person, method, PATH.format("messages"))).status == 403
