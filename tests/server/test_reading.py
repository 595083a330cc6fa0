"""What people read, over real sockets: lists, one message, figures, history; and who may not."""

from __future__ import annotations

import urllib.parse

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker import clock
from broker.events import codec, types
from broker.projections.queries import Queries
from broker.services.server import api
from support import log
from support.examples import examples
from support.reading import BODY, NUMBER, Reading
from support.waiting import wait_until

PORTAL, ADMIN, STATS, AUDIT = "/portal/messages", "/admin/messages", "/admin/stats", "/audit/events"


@pytest.mark.case("TC-M-006")
@pytest.mark.case("TC-S-014")
@pytest.mark.case("TC-S-015")
async def test_messages_of_whom(reading):
    """Readers see their clients' messages and nobody else's; admins see all, in the portal and the admin API."""
    mine = [await reading.register("demo") for _ in range(3)]
    theirs = [await reading.register("acme") for _ in range(2)]
    await reading.deliver(mine[0])
    await reading.caught_up()
    for name, path, want in (
        ("reader", PORTAL, mine),
        ("other", PORTAL, theirs),
        ("both", PORTAL, mine + theirs),
        ("nobody", PORTAL, []),
        ("reader", f"{PORTAL}?client_id=acme", []),
        ("admin", PORTAL, mine + theirs),
        ("admin", ADMIN, mine + theirs),
        ("admin", f"{ADMIN}?client_id=acme", theirs),
        ("reader", f"{PORTAL}?status=delivered", mine[:1]),
        ("admin", f"{ADMIN}?status=queued", mine[1:] + theirs),
    ):
        answer = (await reading.get(name, path)).json
        assert {each["message_id"] for each in answer["messages"]} == set(want), (name, path)
        assert (answer["total"], answer["total_exact"]) == (len(want), True)
    shown = (await reading.get("reader", f"{PORTAL}/{mine[0]}")).json
    assert (shown["status"], shown["client_id"]) == ("delivered", "demo")
    assert (await reading.get("admin", f"{PORTAL}/{theirs[0]}")).status == 200
    hidden = await reading.get("reader", f"{PORTAL}/{theirs[0]}")
    assert (hidden.status, hidden.json["error"]) == (404, "not_found")


async def test_pages_and_filters(reading):
    """Page by page by cursor or number; by day and by exact number; what is not understood is refused."""
    sent = [await reading.register("demo", f"+49152000000{n % 2:02d}") for n in range(5)]
    await reading.register("acme", "+4915200000001")
    await reading.caught_up()
    first = (await reading.get("reader", f"{PORTAL}?per_page=2")).json
    assert (first["total"], first["page"], first["per_page"], first["pages"]) == (5, 1, 2, 3)
    seen, page = [each["message_id"] for each in first["messages"]], first
    while page["next"]:
        page = (await reading.get("reader", f"{PORTAL}?per_page=2&cursor={page['next']}")).json
        seen += [each["message_id"] for each in page["messages"]]
    assert seen == sent[::-1]
    assert page["page"] == 3
    third = (await reading.get("reader", f"{PORTAL}?per_page=2&page=3")).json
    assert [each["message_id"] for each in third["messages"]] == sent[:1]
    found = (await reading.get("reader", f"{PORTAL}?search=%2B4915200000001")).json
    assert {each["message_id"] for each in found["messages"]} == {sent[1], sent[3]}
    assert (await reading.get("admin", f"{ADMIN}?search=%2B4915200000001")).json["total"] == 3
    assert (await reading.get("reader", f"{PORTAL}?search=%2B4915200000009")).json["total"] == 0
    today = clock.iso(clock.now_ms())[:10]
    for query, total in ((f"from_date={today}&to_date={today}", 5), ("to_date=2026-01-01", 0)):
        assert (await reading.get("reader", f"{PORTAL}?{query}")).json["total"] == total
    for query, field in (
        ("status=lost", "status"), ("page=0", "page"), ("per_page=201", "per_page"), ("page=1e3", "page"),
        ("cursor=x", "cursor"), ("from_date=yesterday", "from_date"), ("search=123", "search"),
        ("order=asc", "order"), ("page=1&page=2", "page"), (f"page=2&cursor={first['next']}", "page"),
        ("page=9999&per_page=200", "page"), ("search=%00", "search"), ("client_id=%C3%A9", "client_id"),
    ):  # fmt: skip
        answer = await reading.get("reader", f"{PORTAL}?{query}")
        assert (answer.status, answer.json["error"]) == (400, "validation_error"), query
        assert answer.json["details"][0]["field"] == field


@pytest.mark.case("TC-S-010")
async def test_bodies(reading):
    """Everybody sees `[encrypted]` and a masked number; an admin who decrypts is on record before the answer."""
    message_id = await reading.register("demo")
    await reading.caught_up()
    for name, path in (("reader", PORTAL), ("admin", PORTAL), ("admin", ADMIN)):
        answer = await reading.get(name, path)
        (listed,) = answer.json["messages"]
        assert (listed["message_body"], listed["sender_number"]) == ("[encrypted]", "+49*********78")
        assert BODY.encode() not in answer.body
    one = f"{PORTAL}/{message_id}"
    for name in ("reader", "admin"):
        answer = await reading.get(name, one)
        assert (answer.json["message_body"], answer.json["sender_number"]) == (
            "[encrypted]",
            "+49*********78",
        )
    refused = await reading.get("reader", f"{one}?decrypt=true")
    assert (refused.status, refused.json["error"]) == (403, "forbidden")
    assert "BodyRead" not in await log.tags(reading.world.redis, reading.world.keys.access)
    plain = await reading.get("admin", f"{one}?decrypt=true&reason=a%20complaint")
    assert (plain.json["message_body"], plain.json["sender_number"]) == (BODY, NUMBER)
    (tag, fields), *_ = reversed(await log.history(reading.world.redis, reading.world.keys.access))
    assert tag == "BodyRead"
    assert codec.decode(tag, fields[b"d"]) == types.BodyRead(message_id, "demo", "a complaint")
    assert fields[b"s"].startswith(b"user:")


async def test_nothing_is_shown_that_cannot_be_recorded(reading):
    """With the access stream refused, a body stays closed."""
    await reading.person("admin")
    message_id = await reading.register("demo")
    await reading.caught_up()
    await reading.world.redis.hset(reading.world.keys.access.meta, "refused", "a test")
    answer = await reading.get("admin", f"{PORTAL}/{message_id}?decrypt=true")
    assert (answer.status, answer.json["error"]) == (503, "log_unavailable")
    assert BODY.encode() not in answer.body


async def test_erased(reading):
    """Of a client whose keys were erased nothing can be read, and the list says so."""
    message_id = await reading.register("demo")
    await reading.caught_up()
    await reading.world.clients.erase_client("demo", "asked for", actor="system")
    await wait_until(lambda: reading.server.trust.client("demo").status == "erased")
    (listed,) = (await reading.get("admin", ADMIN)).json["messages"]
    assert listed["sender_number"] == "[erased]"
    gone = await reading.get("admin", f"{PORTAL}/{message_id}?decrypt=true")
    assert (gone.status, gone.json["error"]) == (410, "key_erased")
    assert (await reading.get("admin", f"{ADMIN}?search=%2B4915212345678")).json["total"] == 0


async def test_timeline(reading):
    """What happened to a message, who did it, and with which certificate."""
    message_id = await reading.register("demo")
    await reading.deliver(message_id)
    await reading.caught_up()
    steps = (await reading.get("reader", f"{PORTAL}/{message_id}")).json["timeline"]
    assert (steps[0]["event"], steps[-1]["event"]) == ("MessageSubmitted", "Delivered")
    assert all(step["actor"] and step["at"].endswith("Z") for step in steps)


@pytest.mark.case("TC-M-011")
async def test_stats(reading):
    """Counts, delivery times, what is open, and how far the read models are."""
    sent = [await reading.register("demo") for _ in range(3)]
    await reading.deliver(sent[0])
    await reading.caught_up()
    for period in ("hour", "day", "week", "month"):
        found = (await reading.get("admin", f"{STATS}?period={period}")).json
        assert (found["period"], found["total_messages"], found["messages_last_24h"]) == (period, 3, 3)
        assert found["messages_by_status"] == {"queued": 2, "delivered": 1, "failed": 0}
        assert (found["total_clients"], found["active_clients"]) == (2, 1)
        assert (found["open_messages"], found["overdue_retries"]) == (2, 0)
        assert set(found["delivery"]) == {"p50", "p95", "p99"}
    assert {each["projection"] for each in found["projections"]} >= {"messages", "audit_log", "users"}
    assert {each["halted"] for each in found["projections"]} == {None}
    assert (await reading.get("admin", f"{STATS}?period=year")).status == 400


async def test_history(reading):
    """Auditors and admins read events by filter, page by page, with nothing in them that must not leave."""
    sent = [await reading.register("demo") for _ in range(3)]
    await reading.deliver(sent[0])
    await reading.caught_up()
    for name in ("auditor", "admin"):
        found = (await reading.get(name, f"{AUDIT}?type=MessageSubmitted,Delivered")).json
        assert sorted(each["type"] for each in found["events"]) == ["Delivered", *["MessageSubmitted"] * 3]
        assert found["next"] is None
    one = (await reading.get("auditor", f"{AUDIT}?subject={sent[0]}&limit=1")).json
    assert one["events"][0]["type"] == "Delivered"
    assert len(one["events"][0]["hash"]) == 64
    older = (await reading.get("auditor", f"{AUDIT}?subject={sent[0]}&cursor={one['next']}")).json
    assert older["events"][-1]["type"] == "MessageSubmitted"
    assert set(older["events"][-1]["data"]["sealed"]) == {"withheld"}
    assert (await reading.get("auditor", f"{AUDIT}?client_id=acme&type=ClientRegistered")).json["events"]
    everything = await reading.get("auditor", f"{AUDIT}?limit=500")
    assert not [secret for secret in (b"$2b$", BODY.encode(), NUMBER.encode()) if secret in everything.body]
    for query, field in (("type=Nothing", "type"), ("limit=501", "limit"), ("cursor=x", "cursor"),
                         ("correlation_id=%C3%A9", "correlation_id"), ("client_id=%C3%A9", "client_id")):  # fmt: skip
        answer = await reading.get("auditor", f"{AUDIT}?{query}")
        assert (answer.status, answer.json["details"][0]["field"]) == (400, field)


@pytest.mark.case("TC-M-015")
@pytest.mark.case("TC-S-016")
async def test_who_may_read_what(reading):
    """Each role reaches what is its own and gets 403 for the rest; nobody gets anything without a token."""
    message_id = await reading.register("demo")
    await reading.caught_up()
    one = f"{PORTAL}/{message_id}"
    for path, allowed in (
        (PORTAL, {"reader", "admin"}),
        (one, {"reader", "admin"}),
        (ADMIN, {"admin"}),
        (STATS, {"admin"}),
        (AUDIT, {"auditor", "admin"}),
    ):
        for name in ("reader", "admin", "auditor"):
            answer = await reading.get(name, path)
            assert answer.status == (200 if name in allowed else 403), (name, path)
            if answer.status == 403:
                assert answer.json["error"] == "forbidden"
        assert (await reading.anonymous.get(path)).status == 401
        # A producer's or a service's certificate is no token.
        assert (await reading.internal.get(path)).status == 401


values = (
    st.binary(max_size=20).map(urllib.parse.quote_from_bytes)
    | st.integers().map(str)
    | st.datetimes().map(lambda at: urllib.parse.quote(at.isoformat()))
    | st.sampled_from(
        ["all", "day", "1", "true", "2026-01-31", "Failed,Delivered", "demo", "%2B4915212345678"]
    )
)


@pytest.mark.parametrize(
    "path", [PORTAL, ADMIN, STATS, AUDIT, f"{PORTAL}/01890000-0000-7000-8000-000000000000"]
)
async def test_whatever_is_asked(reading, path):
    """Any parameters are answered or refused as documented; nothing a caller writes reaches the database raw."""
    names = ["status", "from_date", "to_date", "search", "client_id", "page", "per_page", "cursor", "period",
             "type", "subject", "actor", "correlation_id", "limit", "decrypt", "reason"]  # fmt: skip
    described = api.document()["paths"]
    known = described.get(path, described[f"{PORTAL}/{{message_id}}"])["get"]
    mine = [each["name"] for each in known["parameters"] if each["in"] == "query"]
    asked: list[str] = []

    @settings(max_examples=examples(15, 40), suppress_health_check=list(HealthCheck), database=None)
    @given(st.lists(st.tuples(st.sampled_from(mine) | st.sampled_from(names), values), max_size=3))
    def collect(pairs: list[tuple[str, str]]) -> None:
        asked.append("&".join(f"{name}={value}" for name, value in pairs))

    collect()
    await reading.register("demo")
    for query in asked:
        answer = await reading.get("admin", f"{path}?{query}")
        assert str(answer.status) in known["responses"], (query, answer.body)
        assert answer.status < 500, (query, answer.body)


async def test_without_the_database(world):
    """503, and when to come back."""
    queries = Queries("mysql://u:p@127.0.0.1:1/message_system")
    async with world.server(database=queries) as server:
        made = Reading(world, server, queries.store)
        for path in (PORTAL, ADMIN, STATS, AUDIT):
            answer = await made.get("admin", path)
            assert (answer.status, answer.json["error"]) == (503, "store_unavailable")
            assert answer.headers["retry-after"]
    await queries.close()
