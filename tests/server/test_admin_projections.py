"""GET /admin/projections, over real sockets: how far each read model is, and what holds it up."""

from __future__ import annotations

from broker.projections import catalog
from broker.projections.queries import Queries
from support.reading import Reading
from support.waiting import wait_until

PATH = "/admin/projections"


async def look(reading: Reading) -> dict[str, dict]:
    answer = await reading.get("admin", PATH)
    assert answer.status == 200, answer.body
    return {each["name"]: each for each in answer.json["projections"]}


async def test_every_read_model(reading):
    """Each with its version, its tables, and position, counts and lag on each stream that feeds it."""
    await reading.register("demo")
    await reading.person("admin")  # before the wait: to sign in is an event too
    await reading.caught_up()
    found = await look(reading)
    assert list(found) == catalog.names()
    partitions = {str(each.number) for each in reading.world.keys.partitions}
    for each in catalog.projections():
        one = found[each.name]
        assert (one["version"], one["tables"], one["state"]) == (1, list(each.tables), "running")
        fed = {stream.stream for stream in reading.world.keys.streams if each.wants(stream.stream)}
        assert {stream["stream"] for stream in one["streams"]} == fed
        for stream in one["streams"]:
            assert (stream["events_behind"], stream["state"], stream["reason"]) == (0, "running", None)
            assert stream["position"].startswith(f"{stream['stream']}:")
    assert {each["stream"] for each in found["messages"]["streams"]} == partitions
    assert sum(each["events"] for each in found["messages"]["streams"]) == 1


async def test_without_a_projector(reading):
    """`waiting`, with the events that pile up."""
    await reading.register("demo")
    await reading.caught_up()
    await reading.stop_projecting()
    for _ in range(3):
        await reading.register("demo")
    found = await look(reading)
    assert found["messages"]["state"] == "waiting"
    assert found["messages"]["events_behind"] == 3
    assert found["messages"]["seconds_behind"] >= 0
    assert {each["reason"] for each in found["messages"]["streams"]} == {"No projector has this stream."}


async def test_a_read_model_that_stopped(reading):
    """`stopped`, with the reason, on that stream alone; the others run on."""
    partition = reading.world.keys.partitions[0]
    await reading.world.redis.xadd(
        partition.events, {"t": "MessageSubmitted", "s": "short", "m": b"\x93\x01\xa1x\xc0", "d": b"\x90"}
    )

    async def stopped() -> dict | None:
        one = (await look(reading))["messages"]
        return one if one["state"] == "stopped" else None

    found = await wait_until(stopped)
    (held,) = [each for each in found["streams"] if each["state"] == "stopped"]
    assert (held["stream"], held["events_behind"]) == ("0", 1)
    assert held["reason"]
    assert (await look(reading))["users"]["state"] == "running"


async def test_a_log_that_is_refused(reading):
    """`refused`, with what refused it, whatever else is wrong."""
    await reading.register("demo")
    await reading.caught_up()
    await reading.person("admin")
    await reading.world.redis.hset(reading.world.keys.partitions[0].meta, "refused", "it went back")
    found = await look(reading)
    assert found["messages"]["state"] == "refused"
    assert "it went back" in {each["reason"] for each in found["messages"]["streams"]}
    # The tables are of another log.
    await reading.world.redis.hdel(reading.world.keys.partitions[0].meta, "refused")
    await reading.store.execute("UPDATE checkpoints SET incarnation='other' WHERE stream='0'")
    held = [each for each in (await look(reading))["messages"]["streams"] if each["state"] == "refused"]
    assert [each["reason"] for each in held] == ["The tables follow incarnation other, the log is inc-0."]


async def test_who_may_look(reading):
    """Admins alone; parameters are refused."""
    for name in ("reader", "auditor"):
        assert (await reading.get(name, PATH)).status == 403
    assert (await reading.get("admin", f"{PATH}?stream=0")).status == 400


async def test_without_the_database(world):
    """503."""
    queries = Queries("mysql://u:p@127.0.0.1:1/message_system")
    async with world.server(database=queries) as server:
        answer = await Reading(world, server, queries.store).get("admin", PATH)
        assert (answer.status, answer.json["error"]) == (503, "store_unavailable")
    await queries.close()
