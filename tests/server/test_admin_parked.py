"""GET /admin/parked and what is done to parked messages, over real sockets; a worker parks and delivers them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator

import pytest

from broker import clock
from broker.domain import ids
from broker.domain.message import Accepted, NeedsPerson
from broker.events.open_messages import FinishedMessage, OpenMessage, look_up
from broker.events.sealing import Sealer
from broker.projections import listing
from broker.services.delivery.worker import Worker
from support import log
from support.reading import NUMBER, Reading
from support.rig import QUICK, Recorder
from support.waiting import wait_until

PARKED, RESEND, DISCARD = "/admin/parked", "/admin/parked/resend", "/admin/parked/discard"
UNREADABLE, UNUSABLE = "the body cannot be read", "the route cannot be used"
NOBODY = "01890000-0000-7000-8000-000000000000"


class Parking:
    """A worker whose recipient has messages parked, for a reason that the test chooses, or takes them."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.answer = NeedsPerson(UNREADABLE)
        self.recipient = Recorder(lambda _: self.answer)

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        world, trust = self.reading.world, self.reading.server.trust
        worker = Worker(
            redis=world.redis,
            redis_url=world.url,
            keys=world.keys,
            identity=world.identity,
            clients=trust,
            opener=Sealer(world.keyring, trust.keys),
            channels={self.recipient.name: self.recipient},
            limits=QUICK,
        )
        stop = asyncio.Event()
        task = asyncio.create_task(worker.run(stop))
        try:
            yield
        finally:
            stop.set()
            await task

    async def known(self, message_id: str) -> OpenMessage | FinishedMessage | None:
        world = self.reading.world
        return (await look_up(world.redis, world.keys, [ids.parse(message_id)]))[0]

    async def park(self, count: int = 1, client: str = "demo", reason: str = UNREADABLE) -> list[str]:
        """Messages that wait for a person, shown as such."""
        self.answer = NeedsPerson(reason)
        made = [await self.reading.register(client) for _ in range(count)]
        for each in made:
            await self.phase(each, "parked")
        await self.reading.caught_up()
        return made

    async def phase(self, message_id: str, wanted: str) -> None:
        """Wait until Redis has it so: a phase, or an outcome."""

        async def reached() -> bool:
            found = await self.known(message_id)
            return wanted == (found.outcome if isinstance(found, FinishedMessage) else found.phase)

        await wait_until(reached, what=wanted)

    async def get(self, query: str = "") -> dict:
        answer = await self.reading.get("admin", f"{PARKED}{query}")
        assert answer.status == 200, answer.body
        return answer.json

    async def post(self, path: str, given, status: int = 200) -> dict:
        answer = await self.reading.post("admin", path, given)
        assert answer.status == status, answer.body
        return answer.json

    async def tags(self, message_id: str) -> list[str]:
        raw, world = ids.parse(message_id), self.reading.world
        return await log.tags(world.redis, world.keys.partitions[ids.partition(raw)], raw)


@pytest.fixture
async def parking(reading) -> AsyncIterator[Parking]:
    made = Parking(reading)
    await reading.world.clients.change_route("demo", "simulated", actor="system")
    await reading.world.clients.change_route("acme", "simulated", actor="system")
    async with made.working():
        yield made


async def test_what_is_parked(parking):
    """Each with its reason and for how long; all reasons with their counts; filters and pages as in every list."""
    before = clock.now_ms()
    first = await parking.park(3)
    second = await parking.park(2, "acme", UNUSABLE)
    found = await parking.get()
    assert [each["message_id"] for each in found["messages"]] == [*second[::-1], *first[::-1]]
    assert (found["total"], found["total_exact"], found["next"]) == (5, True, None)
    one = found["messages"][-1]
    assert (one["status"], one["parked"], one["reason"]) == ("queued", True, UNREADABLE)
    assert (one["message_body"], one["sender_number"]) == ("[encrypted]", "+49*********78")
    assert 0 <= one["parked_seconds"] <= (clock.now_ms() - before) / 1000 + 1
    assert one["parked_at"] >= one["queued_at"]
    assert [(each["reason"], each["count"]) for each in found["reasons"]] == [(UNREADABLE, 3), (UNUSABLE, 2)]
    assert found["oldest_seconds"] == max(each["oldest_seconds"] for each in found["reasons"])
    for query, want in (
        ("?client_id=acme", second),
        (f"?parked_reason={UNREADABLE.replace(' ', '%20')}", first),
        ("?client_id=acme&parked_reason=other", []),
        (f"?search={NUMBER.replace('+', '%2B')}", first + second),
        ("?search=%2B4915200000009", []),
        ("?to_date=2026-01-01", []),
    ):
        assert {each["message_id"] for each in (await parking.get(query))["messages"]} == set(want), query
    page = await parking.get("?per_page=2")
    seen = [each["message_id"] for each in page["messages"]]
    while page["next"]:
        page = await parking.get(f"?per_page=2&cursor={page['next']}")
        seen += [each["message_id"] for each in page["messages"]]
    assert seen == [*second[::-1], *first[::-1]]
    for query, field in (("?status=queued", "status"), ("?per_page=0", "per_page"), ("?cursor=x", "cursor")):
        answer = await parking.reading.get("admin", f"{PARKED}{query}")
        assert (answer.status, answer.json["details"][0]["field"]) == (400, field)


async def test_nothing_is_parked(parking):
    """An empty list without reasons."""
    found = await parking.get()
    assert (found["messages"], found["total"], found["reasons"], found["oldest_seconds"]) == ([], 0, [], None)


async def test_given_back(parking):
    """It goes on in its cycle and can be delivered; the timeline says who gave it back."""
    (message_id,) = await parking.park()
    parking.answer = Accepted(200)
    counted = await parking.post(RESEND, {"all": True, "dry_run": True})
    assert (counted["matched"], counted["done"]) == (1, 0)
    assert await parking.tags(message_id) == ["MessageSubmitted", "MessageParked"]
    done = await parking.post(RESEND, {"message_ids": [message_id]})
    assert (done["matched"], done["done"], done["refused"], done.get("visible", True)) == (1, 1, [], True)
    await parking.phase(message_id, "delivered")
    await parking.reading.caught_up()
    shown = (await parking.reading.get("admin", f"/portal/messages/{message_id}")).json
    assert (shown["status"], shown["cycle"], shown["parked"]) == ("delivered", 1, False)
    profile = (await parking.reading.get("admin", "/portal/profile")).json
    step = next(step for step in shown["timeline"] if step["event"] == "DeliveryDue")
    assert step["actor"] == f"user:{profile['user_id']}"
    assert (await parking.get())["total"] == 0


async def test_one_is_given_back_by_its_resend(parking):
    """Resending a single message that is parked continues its cycle, and the answer says so."""
    (message_id,) = await parking.park()
    parking.answer = Accepted(200)
    answer = await parking.post(f"/admin/messages/{message_id}/resend", None)
    assert (answer["continued"], answer["cycle"]) == (True, 1)
    await parking.phase(message_id, "delivered")


async def test_discarded(parking):
    """The cycle ends undelivered with who and why; its ciphertext leaves Redis; a resend opens the next one."""
    (message_id,) = await parking.park()
    raw = ids.parse(message_id)
    stream = parking.reading.world.keys.partitions[ids.partition(raw)]
    assert await parking.reading.world.redis.hexists(stream.bodies, raw)
    done = await parking.post(DISCARD, {"message_ids": [message_id], "reason": "ordered by the customer"})
    assert done["done"] == 1
    found = await parking.known(message_id)
    assert (found.outcome, found.cycle, found.client_id) == ("discarded", 1, "demo")
    assert not await parking.reading.world.redis.hexists(stream.bodies, raw)
    assert await parking.reading.world.redis.zscore(stream.age, raw) is None
    assert await parking.reading.world.redis.pttl(stream.done(ids.created_ms(raw))) > 0
    shown = (await parking.reading.get("admin", f"/portal/messages/{message_id}")).json
    assert (shown["status"], shown["parked"], shown["reason"]) == ("failed", False, "ordered by the customer")
    profile = (await parking.reading.get("admin", "/portal/profile")).json
    step = shown["timeline"][-1]
    assert (step["event"], step["actor"]) == ("MessageDiscarded", f"user:{profile['user_id']}")
    assert step["reason"] == "ordered by the customer"
    again = await parking.post(DISCARD, {"message_ids": [message_id], "reason": "twice"})
    assert (again["done"], again["refused"][0]["error"]) == (0, "conflict")
    parking.answer = Accepted(200)
    assert (await parking.post(f"/admin/messages/{message_id}/resend", {}))["cycle"] == 2
    await parking.phase(message_id, "delivered")


async def test_by_reason_in_steps(parking):
    """A filter and a limit take some; the cursor leads to the others; what does not match stays parked."""
    chosen = await parking.park(5, reason=UNUSABLE)
    others = await parking.park(2)
    given = {"parked_reason": UNUSABLE, "reason": "the route is gone for good", "limit": 2}
    done, cursor = 0, None
    while True:
        answer = await parking.post(DISCARD, given | ({"cursor": cursor} if cursor else {}))
        assert answer["done"] <= 2
        done, cursor = done + answer["done"], answer["next"]
        if cursor is None:
            break
    assert done == 5
    for each in chosen:
        assert (await parking.known(each)).outcome == "discarded"
    for each in others:
        assert (await parking.known(each)).phase == "parked"


async def test_who_is_first_decides(parking):
    """Given back and discarded at the same moment, over and over: each message takes one of both, once."""
    parked = await parking.park(6)
    await parking.reading.person("admin")
    answers = await asyncio.gather(
        *(
            parking.reading.post("admin", path, given)
            for _ in range(3)
            for path, given in (
                (RESEND, {"message_ids": parked}),
                (DISCARD, {"message_ids": parked, "reason": "no more"}),
            )
        )
    )
    assert {each.status for each in answers} == {200}
    taken = 0
    for each in parked:
        tags = await parking.tags(each)
        taken += tags.count("DeliveryDue") + tags.count("MessageDiscarded")
        # What was given back may have been parked again, and taken once more.
        assert set(itertools.pairwise(tags)) <= {
            ("MessageSubmitted", "MessageParked"),
            ("MessageParked", "DeliveryDue"),
            ("MessageParked", "MessageDiscarded"),
            ("DeliveryDue", "MessageParked"),
        }
    assert taken == sum(each.json["done"] for each in answers) >= len(parked)


async def test_what_is_not_parked(parking):
    """Open, ended and unknown ones are left as they are."""
    parking.answer = Accepted(200)
    delivered = await parking.reading.register("demo")
    await parking.phase(delivered, "delivered")
    for path, more in ((RESEND, {}), (DISCARD, {"reason": "no"})):
        answer = await parking.post(path, {"message_ids": [delivered, NOBODY]} | more)
        assert {each["message_id"]: each["error"] for each in answer["refused"]} == {
            delivered: "conflict",
            NOBODY: "not_found",
        }
    for path, given, field in (
        (DISCARD, {"all": True}, "reason"),
        (DISCARD, {"all": True, "reason": ""}, "reason"),
        (DISCARD, {"reason": "all of them"}, "all"),
        (RESEND, {}, "all"),
        (RESEND, {"message_ids": [NOBODY], "parked_reason": "x"}, "parked_reason"),
        (RESEND, {"all": True, "status": "failed"}, "status"),
    ):
        refused = await parking.post(path, given, 400)
        assert refused["details"][0]["field"] == field, given


async def test_only_admins(parking):
    """Readers and auditors get 403, and nothing happens."""
    (message_id,) = await parking.park()
    for name in ("reader", "auditor"):
        assert (await parking.reading.get(name, PARKED)).status == 403
        for path in (RESEND, DISCARD):
            given = {"message_ids": [message_id], "reason": "x"}
            assert (await parking.reading.post(name, path, given)).status == 403
    assert (await parking.known(message_id)).phase == "parked"


async def test_parked_ones_are_found_by_index(reading):
    """However many messages there are: the few that are parked are read, whatever else is asked."""
    for wanted in (
        listing.Filter(None, parked=True),
        listing.Filter(("demo",), None, 1, 2_000_000_000_000, parked=True),
        listing.Filter(None, parked=True, parked_reason=UNREADABLE, number_hashes=(b"h" * 32,)),
    ):
        branches = listing._branches(wanted)
        for statement, args in (
            listing.page_query(wanted, branches, 1, 51),
            listing.count_query(wanted, branches),
        ):
            plan = await reading.store.select(f"EXPLAIN {statement}", args)
            assert {row["key"] for row in plan if row["table"] == "messages"} == {"parked_queued"}
