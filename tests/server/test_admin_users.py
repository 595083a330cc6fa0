"""People, made and changed by admins over the API; each change bites at the next request."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import msgspec
import pytest

from broker.events import codec, envelope
from broker.events.user_commands import UserCommands
from broker.projections.queries import Queries
from support import log
from support.calling import Caller
from support.reading import PASSWORD

USERS = "/admin/users"
LOGIN, REFRESH, PROFILE = "/portal/auth/login", "/portal/auth/refresh", "/portal/profile"
EMAIL = "new@example.com"
NEW = {"email": EMAIL, "password": "a password of hers", "role": "user", "client_ids": ["demo"]}
NOBODY = "00000000-0000-4000-8000-000000000000"


async def create(reading, **changes):
    answer = await reading.post("admin", USERS, NEW | changes)
    assert answer.status == 201, answer.body
    return answer.json


async def sign_in(reading, email: str = EMAIL, password: str = NEW["password"]):
    return await reading.anonymous.post(LOGIN, {"email": email, "password": password})


async def as_user(reading, token: str, path: str):
    return await reading.anonymous.get(path, headers={"authorization": f"Bearer {token}"})


async def control(world) -> list[tuple[str, object]]:
    """Actor and event of everything on the control stream."""
    return [
        (envelope.decode(fields[b"m"]).actor, codec.decode(tag, fields[b"d"]))
        for tag, fields in await log.history(world.redis, world.keys.control)
    ]


@pytest.mark.case("TC-M-008", "TC-I-007")
@pytest.mark.parametrize("path", [USERS, f"{USERS}/create"])
async def test_an_admin_creates_somebody_who_signs_in_and_reads(reading, path):
    """201 with where they are found; listed at once; their JWT opens the portal API, and their clients' messages."""
    sent = await reading.register("demo")
    await reading.register("acme")
    answer = await reading.post("admin", path, NEW | {"email": " New@Example.COM "})
    assert answer.status == 201, answer.body
    made = answer.json
    assert (made["email"], made["role"], made["client_ids"], made["disabled"]) == (
        EMAIL,
        "user",
        ["demo"],
        False,
    )
    assert "visible" not in made
    assert answer.headers["location"] == f"{USERS}/{made['user_id']}"
    assert answer.headers["cache-control"] == "no-store"
    found = (await reading.get("admin", f"{USERS}?search=new%40")).json
    assert [(each["user_id"], each["email"]) for each in found["users"]] == [(made["user_id"], EMAIL)]
    one = (await reading.get("admin", answer.headers["location"])).json
    assert one == found["users"][0]
    assert one["created_at"].endswith("Z")
    assert one["disabled_at"] is None

    token = (await sign_in(reading)).json["access_token"]
    assert (await as_user(reading, token, PROFILE)).json["user_id"] == made["user_id"]
    await reading.caught_up()
    seen = (await as_user(reading, token, "/portal/messages")).json
    assert [each["message_id"] for each in seen["messages"]] == [sent]
    for answered in (answer, await reading.get("admin", USERS)):
        assert b"$2b$" not in answered.body
        assert NEW["password"].encode() not in answered.body


async def test_who_did_it_stands_in_the_history(reading):
    """Actor and correlation id of the admin's request are the event's."""
    headers = {"x-correlation-id": "corr-4711"}
    answer = await reading.post("admin", USERS, NEW, headers=headers)
    admin = (await reading.get("admin", PROFILE)).json["user_id"]
    tag, fields = (await log.history(reading.world.redis, reading.world.keys.control))[-1]
    found = envelope.decode(fields[b"m"])
    assert (tag.partition(".")[0], found.actor, found.correlation_id) == (
        "UserCreated", f"user:{admin}", "corr-4711",
    )  # fmt: skip
    assert codec.decode(tag, fields[b"d"]).user_id == answer.json["user_id"]


WRONG = [
    ({"email": "nobody"}, "email", "e-mail address"),
    ({"email": f"{'x' * 300}@example.com"}, "email", "254"),
    ({"password": "short"}, "password", "at least 8 characters"),
    ({"password": "ü" * 37}, "password", "at most 72 bytes"),
    ({"password": "x" * 2000}, "password", "1024"),
    ({"password": "\x00" * 2 + "12345678"}, "password", "NUL"),
    ({"password": "aaaaaaaaaa"}, "password", "repeated"),
    ({"role": "root"}, "role", "Invalid enum value"),
    ({"client_ids": ["nobody"]}, "client_ids", "nobody"),
    ({"client_ids": ["demo"] * 501}, "client_ids", "500"),
    ({"client_ids": "demo"}, "client_ids", "array"),
    ({"admin": True}, "admin", "not a known field"),
    ({"email": None}, "email", "str"),
]


async def test_what_is_wrong_is_named(reading):
    """400 with the field and what it takes; nothing is written, and no password is quoted."""
    await reading.person("admin")
    before = await control(reading.world)
    for changes, field, says in WRONG:
        answer = await reading.post("admin", USERS, NEW | changes)
        assert (answer.status, answer.json["error"]) == (400, "validation_error"), answer.body
        (detail,) = answer.json["details"]
        assert detail["field"] == field
        assert says in detail["reason"]
        if "password" in changes:
            assert changes["password"].encode() not in answer.body
    assert await control(reading.world) == before


async def test_an_address_is_one_person_s_under_concurrent_creates(reading, url):
    """Many at once over two servers, in different spellings: one is made, the others are told of the conflict."""
    world = reading.world
    await reading.person("admin")
    headers = {"authorization": f"Bearer {reading.tokens['admin']}"}
    async with contextlib.AsyncExitStack() as stack:
        queries = Queries(url)
        stack.push_async_callback(queries.close)
        second = await stack.enter_async_context(world.server(database=queries))
        callers = [reading.anonymous, Caller(second.port, world.pki.client_context())]
        answers = await asyncio.gather(
            *(
                callers[n % 2].post(
                    USERS, NEW | {"email": EMAIL.upper() if n % 3 else EMAIL}, headers=headers
                )
                for n in range(8)
            )
        )
    assert sorted(answer.status for answer in answers) == [201] + [409] * 7
    assert {answer.json["error"] for answer in answers if answer.status == 409} == {"conflict"}
    created = [event for _, event in await control(world) if type(event).__name__ == "UserCreated"]
    assert [event.email for event in created].count(EMAIL) == 1


async def test_another_role_counts_at_the_next_request(reading):
    """An access token from before has the rights of the new role, and no longer those of the old."""
    made = await create(reading)
    token = (await sign_in(reading)).json["access_token"]
    assert (await as_user(reading, token, "/audit/events")).status == 403
    answer = await reading.request("admin", "PUT", f"{USERS}/{made['user_id']}/role", {"role": "auditor"})
    assert (answer.status, answer.json["role"]) == (200, "auditor")
    assert (await as_user(reading, token, "/audit/events")).status == 200
    assert (await as_user(reading, token, "/portal/messages")).status == 403
    assert (await reading.get("admin", f"{USERS}/{made['user_id']}")).json["role"] == "auditor"


async def test_other_clients_are_seen_at_the_next_request(reading):
    """The list is replaced; the same list again is no event; an unknown client is refused."""
    made = await create(reading)
    await reading.register("acme")
    await reading.caught_up()
    token = (await sign_in(reading)).json["access_token"]
    assert (await as_user(reading, token, "/portal/messages")).json["total"] == 0
    path = f"{USERS}/{made['user_id']}/clients"
    answer = await reading.request("admin", "PUT", path, {"client_ids": ["acme"]})
    assert (answer.status, answer.json["client_ids"]) == (200, ["acme"])
    assert (await as_user(reading, token, "/portal/messages")).json["total"] == 1
    before = len(await control(reading.world))
    assert (await reading.request("admin", "PUT", path, {"client_ids": ["acme"]})).status == 200
    assert len(await control(reading.world)) == before
    refused = await reading.request("admin", "PUT", path, {"client_ids": ["ghost"]})
    assert (refused.status, refused.json["details"][0]["field"]) == (400, "client_ids")


async def test_a_reset_password_ends_every_session(reading):
    """Tokens from before are dead, the old password too; the new one lets in."""
    made = await create(reading)
    pair = (await sign_in(reading)).json
    path = f"{USERS}/{made['user_id']}/password"
    assert (await reading.post("admin", path, {"password": "short"})).status == 400
    answer = await reading.post("admin", path, {"password": "quite another one"})
    assert answer.status == 200, answer.body
    assert b"another one" not in answer.body
    assert (await as_user(reading, pair["access_token"], PROFILE)).status == 401
    refused = await reading.anonymous.post(REFRESH, {"refresh_token": pair["refresh_token"]})
    assert refused.status == 401
    assert (await sign_in(reading)).status == 401
    assert (await sign_in(reading, password="quite another one")).status == 200


async def test_disabling_ends_sessions_at_once(reading):
    """The open session gets 401, and so do refreshing and signing in; again changes nothing; the row says so."""
    made = await create(reading)
    pair = (await sign_in(reading)).json
    path = f"{USERS}/{made['user_id']}"
    answer = await reading.request("admin", "DELETE", f"{path}?reason=left")
    assert (answer.status, answer.json["disabled"]) == (200, True)
    assert (await as_user(reading, pair["access_token"], PROFILE)).status == 401
    refreshed = await reading.anonymous.post(REFRESH, {"refresh_token": pair["refresh_token"]})
    assert refreshed.status == 401
    assert (await sign_in(reading)).status == 401
    row = (await reading.get("admin", path)).json
    assert row["disabled"] is True
    assert row["disabled_at"] is not None
    before = await control(reading.world)
    assert before[-1][1].reason == "left"
    assert (await reading.request("admin", "DELETE", path)).status == 200
    assert len(await control(reading.world)) == len(before)
    # The address stays theirs, so that nobody inherits a history.
    assert (await reading.post("admin", USERS, NEW)).status == 409


async def test_the_last_admin_stays(reading):
    """Neither disabled nor given another role; of two who disable each other at once, one is left."""
    await reading.person("admin")
    own = (await reading.get("admin", PROFILE)).json["user_id"]
    for method, path, body in (
        ("DELETE", f"{USERS}/{own}", None),
        ("PUT", f"{USERS}/{own}/role", {"role": "user"}),
    ):
        refused = await reading.request("admin", method, path, body)
        assert (refused.status, refused.json["error"]) == (409, "conflict")
        assert "last admin" in refused.json["detail"]
    second = await create(reading, role="admin")
    token = (await sign_in(reading)).json["access_token"]
    answers = await asyncio.gather(
        reading.request("admin", "DELETE", f"{USERS}/{second['user_id']}"),
        reading.anonymous.request("DELETE", f"{USERS}/{own}", headers={"authorization": f"Bearer {token}"}),
    )
    left = [event for _, event in await control(reading.world) if type(event).__name__ == "UserDisabled"]
    assert len(left) == 1
    first, second = sorted(answer.status for answer in answers)
    assert first == 200
    assert second in {401, 409}


async def test_nobody_of_this_id(reading):
    """404 from every route that names a user, whatever the id looks like."""
    routes = (
        ("GET", "", None),
        ("DELETE", "", None),
        ("PUT", "/role", {"role": "user"}),
        ("PUT", "/clients", {"client_ids": []}),
        ("POST", "/password", {"password": PASSWORD}),
    )
    for user_id, (method, path, body) in itertools.product(
        (NOBODY, "nobody", "%C3%A9", "%00", "x" * 200), routes
    ):
        answer = await reading.request("admin", method, f"{USERS}/{user_id}{path}", body)
        assert (answer.status, answer.json["error"]) == (404, "not_found"), (method, path, answer.body)


@pytest.mark.case("TC-M-008")
@pytest.mark.parametrize("name", ["reader", "auditor"])
async def test_others_are_let_near_nobody(reading, name):
    """403 on every route, before the body is looked at; nothing is written."""
    await reading.person(name)
    before = len(await control(reading.world))
    for method, path in (
        ("POST", ""), ("POST", "/create"), ("GET", ""), ("GET", f"/{NOBODY}"), ("DELETE", f"/{NOBODY}"),
        ("PUT", f"/{NOBODY}/role"), ("PUT", f"/{NOBODY}/clients"), ("POST", f"/{NOBODY}/password"),
    ):  # fmt: skip
        answer = await reading.request(name, method, f"{USERS}{path}", b"{")
        assert (answer.status, answer.json["error"]) == (403, "forbidden"), path
    assert len(await control(reading.world)) == before


async def test_lists(reading):
    """By e-mail address, filtered, in pages; a walk by cursor is the same whatever is added behind it."""
    commands = UserCommands(reading.world.registry)
    for n in range(5):
        role = "auditor" if n == 4 else "user"
        seen = ["acme"] if n % 2 else ["demo", "acme"]
        done = await commands.create_user(f"p{n}_%@example.com", PASSWORD, role, seen, actor="system")
    await commands.disable_user(done.value.user_id, actor="system")
    await reading.person("admin")
    await reading.caught_up()

    async def emails(query: str = "") -> list[str]:
        answer = await reading.get("admin", f"{USERS}?{query}")
        assert answer.status == 200, answer.body
        return [each["email"].partition("_")[0].partition("@")[0] for each in answer.json["users"]]

    assert await emails() == ["admin", "p0", "p1", "p2", "p3", "p4"]
    for query, wanted in (
        ("role=auditor", ["p4"]),
        ("status=disabled", ["p4"]),
        ("status=active&role=user", ["p0", "p1", "p2", "p3"]),
        ("client_id=demo", ["p0", "p2", "p4"]),
        ("search=P3_", ["p3"]),
        ("search=_%25%40", ["p0", "p1", "p2", "p3", "p4"]),
        ("search=%25%25", []),
        ("per_page=2&page=2", ["p1", "p2"]),
    ):
        assert await emails(query) == wanted, query
    first = (await reading.get("admin", f"{USERS}?per_page=2")).json
    assert (first["total"], first["total_exact"], first["page"], first["pages"]) == (6, True, 1, 3)
    await create(reading, email="a-new-one@example.com")
    rest = (await reading.get("admin", f"{USERS}?per_page=2&cursor={first['next']}")).json
    assert [each["email"][:2] for each in rest["users"]] == ["p1", "p2"]
    for query, field in (
        ("role=king", "role"), ("status=x", "status"), ("cursor=x", "cursor"), ("page=0", "page"), ("page=201", "page"),
        (f"page=2&cursor={first['next']}", "page"), ("sort=email", "sort"), ("client_id=%C3%A9", "client_id"),
    ):  # fmt: skip
        answer = await reading.get("admin", f"{USERS}?{query}")
        assert (answer.status, answer.json["details"][0]["field"]) == (400, field), query


async def test_a_change_that_is_not_shown_yet_says_so(reading):
    """With the projector at rest it is 201 with `visible: false`, durable, and in force."""
    await reading.person("admin")
    await reading.caught_up()
    await reading.stop_projecting()
    answer = await reading.post("admin", USERS, NEW)
    assert (answer.status, answer.json["visible"]) == (201, False)
    assert (await sign_in(reading)).status == 200
    assert (await reading.get("admin", f"{USERS}/{answer.json['user_id']}")).status == 404


async def test_without_mysql_people_can_still_be_changed(world, server):
    """Commands are decided in Redis: done, and not visible; lists answer 503."""
    commands = UserCommands(world.registry)
    await commands.create_user("root@example.com", PASSWORD, "admin", actor="system")
    caller = Caller(server.port, world.pki.client_context())
    token = (await caller.post(LOGIN, {"email": "root@example.com", "password": PASSWORD})).json[
        "access_token"
    ]
    headers = {"authorization": f"Bearer {token}"}
    made = await caller.post(USERS, NEW, headers=headers)
    assert (made.status, made.json["visible"]) == (201, False)
    gone = await caller.request("DELETE", f"{USERS}/{made.json['user_id']}", headers=headers)
    assert (gone.status, gone.json["disabled"]) == (200, True)
    for path in (USERS, f"{USERS}/{made.json['user_id']}", "/admin/clients", "/admin/certificates"):
        answer = await caller.get(path, headers=headers)
        assert (answer.status, answer.json["error"]) == (503, "store_unavailable")


async def test_bodies_are_read_strictly(reading):
    """Malformed, too large, of another type: 400, 413, 415, and nothing done."""
    for body, headers, status in (
        (b"{", {}, 400),
        (b'{"email":"a@b.c","email":"d@e.f"}', {}, 400),
        (b"[]", {}, 400),
        (msgspec.json.encode(NEW | {"password": "x" * 70_000}), {}, 413),
        (msgspec.json.encode(NEW), {"content-type": "text/plain"}, 415),
    ):
        answer = await reading.post("admin", USERS, body, headers=headers)
        assert answer.status == status, answer.body
