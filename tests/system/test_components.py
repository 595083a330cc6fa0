"""Each component against each other one, on a running system: over mTLS, through Redis, through MySQL."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from broker.domain import ids
from broker.events import codec
from broker.events.open_messages import look_up
from broker.events.positions import at
from broker.projections import catalog
from support.system import System, eventually
from support.waiting import wait_until

NUMBER = "+4915200000000"
REGISTER, DELIVER = "/internal/messages/register", "/internal/messages/deliver"


def at_server(system: System, certificate: str | None) -> httpx.AsyncClient:
    return system.client(certificate, "server_port")


async def row(system: System, message_id: str, status: str = "delivered") -> dict[str, Any]:
    """The table's row of a message, once it says so."""
    found = await eventually(
        lambda: system.query("SELECT * FROM messages WHERE message_id=%s AND status=%s", message_id, status),
        what=f"{status} in the table",
    )
    return found[0]


async def submit(system: System) -> str:
    async with system.client() as producer:
        answer = await producer.post(
            "/api/v1/messages", json={"sender_number": NUMBER, "message_body": "hello"}
        )
    assert answer.status_code == 202, answer.text
    return answer.json()["message_id"]


async def events(system: System, message_id: str) -> list[tuple[str, str]]:
    """Type and actor of each event of a message as it lies in Redis, oldest first."""
    raw, redis = ids.parse(message_id), system.redis()
    stream = system.keys().partitions[ids.partition(raw)]
    found = []
    for entry, fields in await redis.xrange(stream.events):
        if fields[b"s"] == raw:
            one = codec.recorded(codec.stored(at(stream.stream, entry), fields))
            found.append((type(one.event).__name__, one.envelope.actor))
    await redis.aclose()
    return found


async def requests(system: System, route: str, status: int) -> float:
    """How many requests of a route the server has answered so, by its own count."""
    async with at_server(system, "services/internal") as caller:
        text = (await caller.get("/metrics")).text
    line = f'broker_http_requests_total{{role="server",route="{route}",status="{status}"}}'
    return sum(float(each.rpartition(" ")[2]) for each in text.splitlines() if each.startswith(line))


@pytest.mark.case("TC-I-010")
async def test_the_gateway_registers_messages_at_the_server(shared_system: System) -> None:
    """With the gateway's own certificate, over mTLS: queued, the same answer again, and delivered like any other."""
    given = {"client_id": "demo", "sender_number": NUMBER, "message_body": "registered", "message_id": None}
    given["message_id"] = ids.text(ids.new(0))
    async with at_server(shared_system, "services/gateway") as gateway:
        answers = [await gateway.post(REGISTER, json=given) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()
    assert answers[0].json()["message_id"] == given["message_id"]
    assert answers[0].json()["status"] == "queued"
    for certificate, status, code in (
        (None, 401, "client_certificate_required"),
        ("clients/demo/client", 403, "certificate_purpose"),
    ):
        async with at_server(shared_system, certificate) as stranger:
            refused = await stranger.post(REGISTER, json=given)
        assert (refused.status_code, refused.json()["error"]) == (status, code)
    shown = await row(shared_system, given["message_id"])
    assert (shown["client_id"], shown["attempt_count"]) == ("demo", 1)
    found = await events(shared_system, given["message_id"])
    assert [name for name, _ in found].count("MessageSubmitted") == 1
    assert found[0][1] == "gateway:gateway"


@pytest.mark.case("TC-I-011")
async def test_the_worker_delivers_messages_to_the_server(shared_system: System) -> None:
    """The running worker hands messages over by mTLS; its certificate is let in, nobody else's and none."""
    before = await requests(shared_system, DELIVER, 200)
    message_id = await submit(shared_system)
    await row(shared_system, message_id)
    assert await requests(shared_system, DELIVER, 200) > before
    [attempt] = shared_system.query("SELECT * FROM attempts WHERE message_id=%s", message_id)
    assert (attempt["channel"], attempt["succeeded"]) == ("inbox", 1)
    assert attempt["actor"].startswith("worker:")
    given = {"message_id": message_id, "worker_id": "w1"}
    async with at_server(shared_system, "services/worker") as worker:
        again = await worker.post(DELIVER, json=given)
    assert (again.status_code, again.json()["status"]) == (200, "delivered")
    for certificate, status in ((None, 401), ("clients/demo/client", 403)):
        async with at_server(shared_system, certificate) as stranger:
            assert (await stranger.post(DELIVER, json=given)).status_code == status
    assert [name for name, _ in await events(shared_system, message_id)].count("Delivered") == 1


@contextlib.asynccontextmanager
async def signed_in(system: System, email: str, password: str) -> AsyncIterator[httpx.AsyncClient]:
    async with at_server(system, None) as client:
        answer = await client.post("/portal/auth/login", json={"email": email, "password": password})
        assert answer.status_code == 200, answer.text
        client.headers["authorization"] = f"Bearer {answer.json()['access_token']}"
        yield client


def person(system: System, role: str, clients: str = "") -> tuple[str, str]:
    """A person made from the shell; e-mail address and password."""
    email, password = f"{role}-{secrets.token_hex(4)}@example.com", secrets.token_urlsafe(12)
    args = ("user", "create", email, "--role", role, "--clients", clients, "--password-stdin")
    done = system.run(*args, input=f"{password}\n")
    assert done.returncode == 0, done.stderr
    return email, password


@pytest.mark.case("TC-I-012")
async def test_portal_calls_are_authenticated_and_authorized(shared_system: System) -> None:
    """Each role reaches what is its own at the main server; no token, a wrong one, a disabled user: nothing."""
    message_id = await submit(shared_system)
    await row(shared_system, message_id)
    one = f"/portal/messages/{message_id}"
    async with at_server(shared_system, None) as nobody:
        for path in ("/portal/messages", one, "/portal/profile", "/admin/messages", "/audit/events"):
            assert (await nobody.get(path)).status_code == 401
            assert (await nobody.get(path, headers={"authorization": "Bearer a.b.c"})).status_code == 401
    allowed = {
        ("user", "demo"): {"/portal/messages", one, "/portal/profile"},
        ("user", "nobody-else"): {"/portal/messages", "/portal/profile"},
        ("auditor", ""): {"/portal/profile", "/audit/events"},
        ("admin", ""): {"/portal/messages", one, "/portal/profile", "/admin/messages", "/audit/events"},
    }
    shared_system.run("client", "register", "nobody-else")
    for (role, clients), paths in allowed.items():
        email, password = person(shared_system, role, clients)
        async with signed_in(shared_system, email, password) as client:
            for path in ("/portal/messages", one, "/portal/profile", "/admin/messages", "/audit/events"):
                # Another's message is not there, rather than forbidden.
                hidden = 404 if path == one and role == "user" else 403
                status = (await client.get(path)).status_code
                assert status == (200 if path in paths else hidden), (role, clients, path)
            if role == "user":
                listed = (await client.get("/portal/messages?per_page=200")).json()["messages"]
                assert {each["client_id"] for each in listed} <= {clients}
                done = shared_system.run("user", "disable", email)
                assert done.returncode == 0, done.stderr
                assert (await client.get("/portal/profile")).status_code == 401


@pytest.mark.case("TC-I-013")
async def test_every_component_works_through_redis(shared_system: System) -> None:
    """Gateway and server put messages into the log, the worker takes and ends them, the projector reads them."""
    submitted = await submit(shared_system)
    async with at_server(shared_system, "services/gateway") as gateway:
        given = {"client_id": "demo", "sender_number": NUMBER, "message_body": "registered"}
        registered = (await gateway.post(REGISTER, json=given)).json()["message_id"]
    for message_id, actor in ((submitted, "client:demo"), (registered, "gateway:gateway")):
        await row(shared_system, message_id)
        found = await events(shared_system, message_id)
        assert [name for name, _ in found] == ["MessageSubmitted", "DeliveryAttempted", "Delivered"]
        assert found[0][1] == actor
        assert {who.partition(":")[0] for _, who in found[1:]} == {"worker"}
    redis, keys = shared_system.redis(), shared_system.keys()
    # The server ends a message itself, from what Redis knows, and Redis knows the outcome afterwards.
    outcomes = await look_up(redis, keys, [ids.parse(submitted), ids.parse(registered)])
    assert [one.outcome for one in outcomes] == ["delivered", "delivered"]

    async def idle() -> bool:
        for stream in keys.partitions:
            groups = {one["name"]: one for one in await redis.xinfo_groups(stream.events)}
            assert set(groups) >= {b"delivery", b"projections"}
            assert await redis.hget(stream.lease, "owner")
            if any(groups[name]["pending"] or groups[name]["lag"] for name in (b"delivery", b"projections")):
                return False
            if await redis.hlen(stream.open):
                return False
        return True

    await wait_until(idle, what="nothing left in the queue")
    assert sum([await redis.hlen(stream.workers) for stream in keys.partitions]) >= len(keys.partitions)
    await redis.aclose()
    for name, member in shared_system.members().items():
        if name.partition("-")[0] in {"gateway", "server", "worker", "projector"}:
            assert member["health"] == "ok", name


@pytest.mark.case("TC-I-014")
async def test_every_component_s_data_is_in_mysql(shared_system: System) -> None:
    """Whatever anybody did is in the tables, whole and once; gateway, server and commands read it back from there."""
    message_id = await submit(shared_system)
    shown = await row(shared_system, message_id)
    assert len(shown["sender_number_hashed"]) == 64
    assert b"hello" not in shown["encrypted_body"]
    email, password = person(shared_system, "user", "demo")
    client = f"c{secrets.token_hex(4)}"
    for command in (("client", "register", client), ("cert", "issue", client)):
        assert shared_system.run(*command).returncode == 0

    def tables() -> bool:
        wanted = {
            "messages": f"message_id='{message_id}' AND status='delivered' AND delivered_at IS NOT NULL",
            "attempts": f"message_id='{message_id}' AND succeeded=1",
            "audit_log": f"subject='{message_id}' AND type='Delivered'",
            "users": f"email='{email}' AND password_hash LIKE '$2b$12$%%'",
            "clients": f"client_id='{client}' AND status='active'",
            "certificates": f"client_id='{client}' AND status='active'",
            "statistics": "client_id='demo' AND delivered>0",
            "alembic_version": "version_num<>''",
        }
        return all(
            shared_system.query(f"SELECT 1 FROM {name} WHERE {where}") for name, where in wanted.items()
        )

    await eventually(tables, what="a row in every table")

    # Redis forgets outcomes after two days; the gateway then answers out of the table.
    raw, redis = ids.parse(message_id), shared_system.redis()
    stream = shared_system.keys().partitions[ids.partition(raw)]
    await redis.hdel(stream.done(ids.created_ms(raw)), raw)
    async with shared_system.client() as producer:
        answer = await producer.get(f"/api/v1/messages/{message_id}")
    assert (answer.status_code, answer.json()["status"]) == (200, "delivered")
    async with signed_in(shared_system, email, password) as reader:
        listed = (await reader.get("/portal/messages?status=delivered&per_page=200")).json()
        assert message_id in {each["message_id"] for each in listed["messages"]}

    async def complete() -> bool:
        """Every event of every stream is in the audit log, once."""
        for each in shared_system.keys().streams:
            added = (
                (await redis.xinfo_stream(each.events))["entries-added"]
                if await redis.exists(each.events)
                else 0
            )
            rows = shared_system.query("SELECT COUNT(*) AS n FROM audit_log WHERE stream=%s", each.stream)
            if rows[0]["n"] != added:
                return False
        return True

    await wait_until(complete, what="the audit log complete")
    await redis.aclose()
    rows = shared_system.query("SELECT DISTINCT projection FROM checkpoints WHERE halted IS NULL")
    assert {each["projection"] for each in rows} == set(catalog.names())
    assert shared_system.run("projection", "list").returncode == 0
