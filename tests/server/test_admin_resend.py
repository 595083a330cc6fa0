"""POST /admin/messages/{id}/resend and /admin/messages/resend, over real sockets: one more cycle, by hand."""

from __future__ import annotations

import asyncio

import pytest

from broker.domain import ids
from broker.errors import LogUnavailable
from broker.events.open_messages import FinishedMessage, OpenMessage, look_up
from broker.events.reopening import Reopening
from broker.projections.queries import Queries
from support import log
from support.reading import Reading
from support.waiting import wait_until

RESEND = "/admin/messages/resend"


def resend_of(message_id: str) -> str:
    return f"/admin/messages/{message_id}/resend"


async def fail(reading: Reading, message_id: str) -> None:
    """The message's cycle ends as failed."""
    given = {"message_id": message_id, "status": "failed", "error_message": "no such subscriber"}
    assert (await reading.internal.post("/internal/messages/status", given)).status == 200


async def failed(reading: Reading, count: int = 1, client: str = "demo") -> list[str]:
    """Messages that failed, shown as such."""
    made = [await reading.register(client) for _ in range(count)]
    for each in made:
        await fail(reading, each)
    await reading.caught_up()
    return made


async def known(reading: Reading, message_id: str) -> OpenMessage | FinishedMessage | None:
    world = reading.world
    return (await look_up(world.redis, world.keys, [ids.parse(message_id)]))[0]


async def test_a_failed_message_is_sent_again(reading):
    """The next cycle opens with the same ciphertext; the timeline says who asked, why and when; it can succeed."""
    (message_id,) = await failed(reading)
    answer = await reading.post("admin", resend_of(message_id), {"reason": "the operator is back"})
    assert answer.status == 200, answer.body
    assert answer.json == {
        "message_id": message_id, "client_id": "demo", "status": "queued", "cycle": 2,
        "position": answer.json["position"],
    }  # fmt: skip
    shown = (await reading.get("admin", f"/portal/messages/{message_id}?decrypt=true")).json
    assert (shown["status"], shown["cycle"], shown["attempt_count"]) == ("queued", 2, 0)
    assert shown["message_body"] == "the body that nobody may see"
    profile = (await reading.get("admin", "/portal/profile")).json
    step = shown["timeline"][-1]
    assert (step["event"], step["cycle"], step["reason"]) == ("ResendRequested", 2, "the operator is back")
    assert step["actor"] == f"user:{profile['user_id']}"
    assert step["position"] == answer.json["position"]
    assert step["correlation_id"] == answer.headers["x-correlation-id"]
    await reading.deliver(message_id)
    await reading.caught_up()
    shown = (await reading.get("admin", f"/portal/messages/{message_id}")).json
    assert (shown["status"], shown["cycle"]) == ("delivered", 2)


async def test_what_cannot_be_sent_again(reading):
    """Open, delivered and unknown messages are left as they are; ids and bodies are read strictly."""
    open_, delivered = await reading.register("demo"), await reading.register("demo")
    await reading.deliver(delivered)
    await reading.caught_up()
    for message_id, text in ((open_, "cycle of this message is open"), (delivered, "even_delivered")):
        refused = await reading.post("admin", resend_of(message_id))
        assert (refused.status, refused.json["error"]) == (409, "conflict")
        assert text in refused.json["detail"]
    nobody = await reading.post("admin", resend_of("01890000-0000-7000-8000-000000000000"))
    assert (nobody.status, nobody.json["error"]) == (404, "not_found")
    for path, given, status, field in (
        (resend_of("x"), {}, 400, "message_id"),
        (resend_of(delivered), {"reason": ""}, 400, "reason"),
        (resend_of(delivered), {"reason": "a\nb"}, 400, "reason"),
        (resend_of(delivered), {"even_delivered": "yes"}, 400, "even_delivered"),
        (resend_of(delivered), {"force": True}, 400, "force"),
    ):
        answer = await reading.post("admin", path, given)
        assert (answer.status, answer.json["details"][0]["field"]) == (status, field), given
    assert (await reading.post("admin", resend_of(delivered), b"{")).json["error"] == "malformed_json"
    assert (await reading.post("admin", resend_of(delivered), b" " * 200_000)).status == 413
    tags = [
        tag for stream in reading.world.keys.partitions for tag in await log.tags(reading.world.redis, stream)
    ]
    assert "ResendRequested" not in tags


async def test_a_delivered_message_only_when_told_to(reading):
    """`even_delivered` delivers it again, under the same id."""
    message_id = await reading.register("demo")
    await reading.deliver(message_id)
    await reading.caught_up()
    answer = await reading.post("admin", resend_of(message_id), {"even_delivered": True})
    assert (answer.status, answer.json["cycle"]) == (200, 2)
    assert (await known(reading, message_id)).cycle == 2


async def test_many_who_ask_at_once_open_one_cycle(reading):
    """However many ask for the same message at the same time, one opens the next cycle."""
    (message_id,) = await failed(reading)
    await reading.person("admin")
    answers = await asyncio.gather(*(reading.post("admin", resend_of(message_id)) for _ in range(8)))
    assert sorted(each.status for each in answers) == [200] + [409] * 7
    stream = reading.world.keys.partitions[ids.partition(ids.parse(message_id))]
    tags = await log.tags(reading.world.redis, stream, ids.parse(message_id))
    assert tags.count("ResendRequested") == 1


async def test_after_redis_forgot_the_outcome(reading):
    """Outcomes leave Redis after two days; the tables tell the cycle then."""
    (message_id,) = await failed(reading)
    raw = ids.parse(message_id)
    stream = reading.world.keys.partitions[ids.partition(raw)]
    await reading.world.redis.delete(stream.done(ids.created_ms(raw)))
    assert await known(reading, message_id) is None
    assert (await reading.post("admin", resend_of(message_id))).json["cycle"] == 2
    await fail(reading, message_id)
    assert (await reading.post("admin", resend_of(message_id))).json["cycle"] == 3


async def test_of_an_erased_client(reading):
    """410: nobody could read what would be sent."""
    (message_id,) = await failed(reading)
    await reading.world.clients.erase_client("demo", "asked for", actor="system")
    await wait_until(lambda: reading.server.trust.client("demo").status == "erased")
    gone = await reading.post("admin", resend_of(message_id))
    assert (gone.status, gone.json["error"]) == (410, "key_erased")
    many = await reading.post("admin", RESEND, {"client_id": "demo"})
    assert (many.json["done"], [each["error"] for each in many.json["refused"]]) == (0, ["key_erased"])


async def test_by_filter(reading):
    """A dry run counts, the call does it in bounded steps, and what was left alone is told with its reason."""
    mine = await failed(reading, 5)
    theirs = await failed(reading, 2, "acme")
    delivered = await reading.register("demo")
    await reading.deliver(delivered)
    await reading.caught_up()
    counted = await reading.post("admin", RESEND, {"client_id": "demo", "dry_run": True})
    assert counted.json == {
        "matched": 5, "matched_exact": True, "dry_run": True, "done": 0, "refused": [], "next": None,
    }  # fmt: skip
    everything = await reading.post("admin", RESEND, {"all": True, "dry_run": True})
    assert everything.json["matched"] == 7
    # One of them is sent again by somebody else before the tables show it.
    world = reading.world
    first = (await reading.post("admin", RESEND, {"client_id": "demo", "limit": 3, "reason": "again"})).json
    assert (first["matched"], first["done"], first["refused"]) == (5, 3, [])
    second = (
        await reading.post(
            "admin", RESEND, {"client_id": "demo", "limit": 3, "reason": "again", "cursor": first["next"]}
        )
    ).json
    assert (second["done"], second["next"]) == (2, None)
    for each in mine:
        assert (await known(reading, each)).cycle == 2
    for each in theirs:
        assert isinstance(await known(reading, each), FinishedMessage)
    tags = [tag for stream in world.keys.partitions for tag in await log.tags(world.redis, stream)]
    assert tags.count("ResendRequested") == 5
    assert (await reading.post("admin", RESEND, {"client_id": "demo", "dry_run": True})).json["matched"] == 0
    again = (await reading.post("admin", RESEND, {"status": "delivered", "client_id": "demo"})).json
    assert again["done"] == 1
    assert (await known(reading, delivered)).cycle == 2


async def test_by_number_and_day(reading):
    """The filters of the list: an exact number, by its keyed hash, and days."""
    other = await reading.register("demo", "+4915200000001")
    await fail(reading, other)
    await failed(reading, 2)
    found = await reading.post("admin", RESEND, {"search": "+4915200000001"})
    assert (found.json["matched"], found.json["done"]) == (1, 1)
    assert (await known(reading, other)).cycle == 2
    before = await reading.post("admin", RESEND, {"to_date": "2026-01-01", "dry_run": True})
    assert before.json["matched"] == 0


async def test_named_ones(reading):
    """Each of the ids is judged by itself, once."""
    one, two = await failed(reading, 2)
    open_ = await reading.register("demo")
    nobody = "01890000-0000-7000-8000-000000000000"
    given = {"message_ids": [one, open_, nobody, two, one]}
    counted = (await reading.post("admin", RESEND, given | {"dry_run": True})).json
    assert (counted["matched"], counted["done"]) == (4, 0)
    answer = (await reading.post("admin", RESEND, given)).json
    assert (answer["matched"], answer["done"]) == (4, 2)
    assert {each["message_id"]: each["error"] for each in answer["refused"]} == {
        open_: "conflict",
        nobody: "not_found",
    }


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({}, "all"),
        ({"dry_run": True}, "all"),
        ({"message_ids": []}, "message_ids"),
        ({"message_ids": ["x"]}, "message_ids"),
        ({"message_ids": ["01890000-0000-7000-8000-000000000000"] * 1001}, "message_ids"),
        ({"message_ids": ["01890000-0000-7000-8000-000000000000"], "all": True}, "all"),
        ({"message_ids": ["01890000-0000-7000-8000-000000000000"], "search": "+4915200000000"}, "search"),
        ({"all": True, "limit": 1001}, "limit"),
        ({"all": True, "limit": 0}, "limit"),
        ({"all": True, "status": "queued"}, "status"),
        ({"client_id": ""}, "client_id"),
        ({"client_id": "No Name"}, "client_id"),
        ({"search": "123"}, "search"),
        ({"from_date": "yesterday"}, "from_date"),
        ({"all": True, "cursor": "x"}, "cursor"),
        ({"all": True, "from": "2026-01-01"}, "from"),
    ],
)
async def test_filters_are_read_strictly(reading, given, field):
    """What is not understood is refused, with its name: a filter that is passed over would change too much."""
    answer = await reading.post("admin", RESEND, given)
    assert (answer.status, answer.json["error"]) == (400, "validation_error"), answer.body
    assert answer.json["details"][0]["field"].startswith(field)


async def test_only_admins(reading):
    """Readers and auditors get 403."""
    (message_id,) = await failed(reading)
    for name in ("reader", "auditor"):
        for path in (resend_of(message_id), RESEND):
            assert (await reading.post(name, path, {"all": True} if path == RESEND else None)).status == 403
    assert isinstance(await known(reading, message_id), FinishedMessage)


async def test_a_log_that_is_lost_on_the_way(reading, monkeypatch):
    """503 that says how far it came; repeated it does the rest and nothing twice."""
    sent = await failed(reading, 120)
    await reading.person("admin")
    resend, calls = Reopening.resend, 0

    async def lossy(self, *args):
        nonlocal calls
        calls += 1
        if calls == 60:
            # The answer is lost, not the write.
            await resend(self, *args)
        if calls >= 60:
            raise LogUnavailable
        return await resend(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Reopening, "resend", lossy)
        lost = await reading.post("admin", RESEND, {"all": True})
    assert (lost.status, lost.json["error"]) == (503, "log_unavailable")
    assert "59 of 120" in lost.json["detail"]
    assert calls == 100, "nothing is begun once the log is lost"
    await reading.caught_up()
    again = (await reading.post("admin", RESEND, {"all": True})).json
    assert (again["matched"], again["done"], again["refused"]) == (60, 60, [])
    for each in sent:
        assert (await known(reading, each)).cycle == 2


async def test_while_the_tables_lag(reading):
    """Without a projector the resend is done all the same, and the answer says that it is not visible yet."""
    (message_id,) = await failed(reading)
    await reading.stop_projecting()
    answer = await reading.post("admin", resend_of(message_id))
    assert (answer.status, answer.json["visible"]) == (200, False)
    assert (await known(reading, message_id)).cycle == 2


async def test_without_the_database(world):
    """503: the ciphertext is in the tables."""
    queries = Queries("mysql://u:p@127.0.0.1:1/message_system")
    async with world.server(database=queries) as server:
        made = Reading(world, server, queries.store)
        message_id = await made.register("demo")
        await fail(made, message_id)
        answer = await made.post("admin", resend_of(message_id))
        assert (answer.status, answer.json["error"]) == (503, "store_unavailable")
        assert (await made.post("admin", RESEND, {"all": True})).status == 503
    await queries.close()
