"""Nothing secret is left anywhere: a whole system is driven through every door with marked secrets, then searched.

Messages, numbers, metadata, passwords, tokens, keys and passphrases go in the right way and every wrong way.
Then every log, table, Redis key and file, every listing, export, metric and command's output is looked
through, for each of them in plain, hex, base64 and as it is written in URLs and JSON.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import urllib.parse
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from support import secrets
from support import system as systems
from support.serving import listening
from support.system import System, eventually

BODY, NOTE, IDEMPOTENCY = "marked-body-5b1d", "marked-note-77aa", "marked-idempotency-key-0f31"
NUMBER = "+4915299887766"
FIRST, SECOND, WRONG = "marked-first-password", "marked-second-password", "marked-wrong-password"
SHORT = "mrk-pw7"
PASSPHRASE, OIDC, WEBHOOK = "marked-passphrase-e1", "marked-oidc-secret-9c", "marked-webhook-secret-44"
BOGUS = "marked-bogus-token-8d"
# What may be seen, to prove that the search sees.
PLAIN = "plain-correlation-id-61"
MESSAGE = {"sender_number": NUMBER, "message_body": BODY, "metadata": {"note": NOTE}}


class Recipient:
    """A webhook that answers its first request with a failure made of all that it was sent."""

    def __init__(self) -> None:
        self.app = Starlette(routes=[Route("/hook", self.hook, methods=["POST"])])
        self.requests = 0

    async def hook(self, request):
        self.requests += 1
        echo = (await request.body()).decode()
        if self.requests == 1:
            return JSONResponse({"error": echo}, 500, {"x-echo": echo.encode("ascii", "ignore").decode()})
        if self.requests == 2:
            return Response(echo, 302, {"location": f"https://localhost/{NUMBER}/{BODY}"})
        return Response(status_code=204)


@pytest.fixture
async def recipient(pki) -> AsyncIterator[str]:
    made = Recipient()
    async with listening(made.app, context=pki.server_context()) as running:
        yield f"https://localhost:{running.port}/hook"


@pytest.fixture(scope="module")
def system(tmp_path_factory, pki) -> Iterator[System]:
    settings = {
        "key_passphrase": PASSPHRASE,
        "oidc_issuer": "http://localhost:9/nowhere",
        "oidc_client_id": "broker",
        "oidc_client_secret": OIDC,
        "webhook_allow_private": "true",
        "webhook_ca_file": pki.ca,
        "retry_interval": "0.5",
        "archive_segment_seconds": "1",
        "log_level": "debug",
    }
    with systems.running(tmp_path_factory.mktemp("marked"), **settings) as running:
        yield running


async def submit_in_every_way(client: httpx.AsyncClient) -> str:
    """To the gateway: one message taken; everything else refused. The id of the one."""
    path, batch = "/api/v1/messages", "/api/v1/messages/batch"
    keyed = {"idempotency-key": IDEMPOTENCY, "x-correlation-id": PLAIN}
    taken = await client.post(path, json=MESSAGE, headers=keyed)
    assert taken.status_code == 202, taken.text
    assert (await client.post(path, json=MESSAGE, headers=keyed)).headers["idempotent-replayed"] == "true"
    bodies = [
        json.dumps(MESSAGE)[:-1], json.dumps([MESSAGE]), json.dumps(MESSAGE | {BODY: 1}),
        json.dumps(MESSAGE | {"sender_number": NUMBER + "x"}), json.dumps(MESSAGE | {"sender_number": [NUMBER]}),
        json.dumps(MESSAGE | {"message_body": {BODY: BODY}}), json.dumps(MESSAGE | {"message_body": BODY * 99}),
        json.dumps(MESSAGE | {"metadata": NOTE}), json.dumps(MESSAGE | {"metadata": {NOTE: NOTE * 999}}),
        f'{{"{BODY}": 1, "{BODY}": 2}}', BODY, f'"{NUMBER}', f"\xff{BODY}",
    ]  # fmt: skip
    for body in bodies:
        content = body.encode("latin-1")
        assert (await client.post(path, content=content, headers=JSON)).status_code == 400, body
        answer = await client.post(batch, content=b'{"messages": [%b]}' % content, headers=JSON)
        assert answer.status_code in {207, 400}, body
        answer = await client.post(batch, content=content, headers={"content-type": "application/x-ndjson"})
        assert answer.status_code in {207, 400}, body
    other = MESSAGE | {"message_body": BODY + " another"}
    assert (await client.post(path, json=other, headers=keyed)).status_code == 409
    for odd in ({"content-type": BODY}, JSON | {"idempotency-key": f"{IDEMPOTENCY}\t{IDEMPOTENCY}"}):
        assert (await client.post(path, content=b"{}", headers=odd)).status_code in {400, 415}
    for odd in (f"{path}/{NUMBER}", f"{path}/{BODY}?number={NUMBER}&body={BODY}", f"/{BODY}/{NUMBER}"):
        answer = await client.get(odd, headers={"authorization": f"Bearer {BOGUS}", "cookie": f"x={BOGUS}"})
        assert answer.status_code in {400, 404}
    return taken.json()["message_id"]


JSON = {"content-type": "application/json"}


async def sign_in_in_every_way(client: httpx.AsyncClient, email: str) -> dict[str, str]:
    """To the server: passwords right and wrong, tokens used, reused, forged. The tokens that were given."""
    login, refresh, change = "/portal/auth/login", "/portal/auth/refresh", "/portal/profile/password"
    for given in ({"email": email, "password": WRONG}, {"email": WRONG, "password": WRONG}):
        assert (await client.post(login, json=given)).status_code == 401
    for content in (f'{{"password": "{WRONG}", ', f'{{"password": ["{WRONG}"]}}', f'{{"{WRONG}": 1}}', WRONG):
        assert (await client.post(login, content=content, headers=JSON)).status_code == 400
    first = (await client.post(login, json={"email": email, "password": FIRST})).json()
    second = (await client.post(refresh, json={"refresh_token": first["refresh_token"]})).json()
    bearer = {"authorization": f"Bearer {second['access_token']}"}
    for current, new in ((WRONG, SECOND), (FIRST, SHORT), (FIRST, SECOND * 4)):
        given = {"current_password": current, "new_password": new}
        assert (await client.post(change, json=given, headers=bearer)).status_code == 400
    given = {"current_password": FIRST, "new_password": SECOND}
    changed = await client.post(change, json=given, headers=bearer)
    assert changed.status_code == 200, changed.text
    third = changed.json()
    reused = {"refresh_token": first["refresh_token"]}
    assert (await client.post(refresh, json=reused)).status_code == 401
    assert (await client.post(refresh, json={"refresh_token": BOGUS})).status_code == 401
    for token in (BOGUS, second["access_token"], third["access_token"][:-6] + "AAAAAA"):
        answer = await client.get("/portal/profile", headers={"authorization": f"Bearer {token}"})
        assert answer.status_code == 401
    assert (await client.get("/portal/auth/oidc/login")).status_code == 503
    odd = f"/portal/auth/oidc/callback?code={BOGUS}&state={BOGUS}"
    assert (await client.get(odd, headers={"cookie": f"__Host-broker-oidc={BOGUS}"})).status_code == 400
    names = ("access_token", "refresh_token")
    return {f"{name} {n}": pair[name] for n, pair in enumerate((first, second, third)) for name in names}


async def administer_in_every_way(client: httpx.AsyncClient, hook: str, email: str) -> dict[str, bytes]:
    """As admin: a user, a webhook, a certificate, and each of them wrong. The private key that was made."""
    user = {"email": email, "password": FIRST, "role": "user", "client_ids": ["demo"]}
    assert (await client.post("/admin/users", json=user)).status_code == 201
    for change in ({"role": WRONG}, {"password": SHORT}, {"email": "x", "password": WRONG}, {WRONG: WRONG}):
        assert (await client.post("/admin/users", json=user | change)).status_code == 400
    assert (await client.post("/admin/users", json=user | {"password": WRONG})).status_code == 409
    route = {"channel": "webhook", "target": hook, "secret": WEBHOOK}
    for change in ({"target": "ftp://x"}, {"channel": "inbox"}, {"channel": WEBHOOK}, {"secret": [WEBHOOK]}):
        assert (await client.put("/admin/clients/demo/route", json=route | change)).status_code == 400
    assert (await client.put("/admin/clients/demo/route", json=route)).status_code == 200
    made = await client.post("/admin/certificates/generate", json={"client_name": "marked"})
    assert made.status_code == 201, made.text
    key = load_pem_private_key(made.json()["private_key_pem"].encode(), None)
    return {"generated key": key.private_numbers().private_value.to_bytes(32, "big")}


async def admin(system: System) -> tuple[dict[str, str], dict[str, str]]:
    """The first admin's header, and the tokens in it."""
    given = {
        "email": "admin@example.com",
        "password": (system.data / "admin-password").read_text("utf-8").strip(),
    }
    async with system.client(None, "server_port") as client:
        pair = (await client.post("/portal/auth/login", json=given)).json()
    header = {"authorization": f"Bearer {pair['access_token']}"}
    return header, {f"admin's {name}": pair[name] for name in ("access_token", "refresh_token")}


async def shown(system: System, header: dict[str, str], message_id: str) -> list[secrets.Place]:
    """Every listing, history and metric, and what every command prints."""
    found = []
    paths = [
        "/admin/messages", f"/portal/messages/{message_id}", "/admin/users", "/admin/clients", "/admin/certificates",
        "/admin/parked", "/admin/projections", "/admin/stats?period=day", "/audit/events?limit=500", "/health",
        "/metrics", "/crl.pem",
    ]  # fmt: skip
    async with system.client("services/internal", "server_port") as client:
        for path in paths:
            answer = await client.get(path, headers=header)
            assert answer.status_code == 200, (path, answer.text)
            found.append((path, answer.content))
    async with system.client() as client:
        paths = ["/metrics", "/api/v1/health", f"/api/v1/messages/{message_id}"]
        found += [(f"gateway {path}", (await client.get(path)).content) for path in paths]
    async with httpx.AsyncClient() as client:
        for port in ("worker_metrics_port", "projector_metrics_port"):
            for path in ("/metrics", "/health"):
                answer = await client.get(f"http://localhost:{system.overrides[port]}{path}")
                found.append((f"{port}{path}", answer.content))
    commands = [
        "config", "config --json", "doctor", "doctor --json", "status", "events tail --count 1000 --json",
        f"events show {message_id}", "projection lag", "streams info", "user list", "client list", "cert list",
        "keys list", "archive status", "export", "export --format csv", f"export -o {system.data}/all.jsonl",
        f"export --format csv --client demo -o {system.data}/demo.csv",
    ]  # fmt: skip
    for command in commands:
        done = await asyncio.to_thread(system.run, *command.split())
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        found.append((command, (done.stdout + done.stderr).encode()))
    return found


@pytest.mark.parametrize(
    "write",
    [
        bytes, base64.b64encode, base64.urlsafe_b64encode, lambda b: b.hex().encode(), lambda b: b.hex().upper().encode(),
        lambda b: urllib.parse.quote_from_bytes(b).encode(), lambda b: urllib.parse.quote_plus(b).encode(),
        lambda b: b.decode("latin-1").encode("utf-16-le"), lambda b: b.hex(":").encode(),
    ],
)  # fmt: skip
def test_the_search_sees_whatever_way_it_is_written(write) -> None:
    """At any place between other bytes; and nothing where there is nothing."""
    secret = b"marked secret+/7?"
    for before in range(4):
        place = write(b"x" * before + secret + b"yz")
        assert secrets.seen({"it": secret}, iter([("here", place)])) == ["it in here"]
    assert secrets.seen({"it": secret}, iter([("here", write(b"something else" * 9))])) == []


@pytest.mark.case("TC-S-009", "TC-S-011", "TC-S-012")
async def test_no_secret_is_anywhere(system: System, recipient: str) -> None:
    """Driven, searched while it runs, stopped, and its files searched again."""
    hidden = {text: text.encode() for text in (BODY, NOTE, IDEMPOTENCY, FIRST, SECOND, WRONG, SHORT)}
    hidden |= {text: text.encode() for text in (PASSPHRASE, OIDC, WEBHOOK, BOGUS)}
    hidden["number"] = NUMBER.removeprefix("+").encode()
    # Whoever has a bare hash of a number tries all numbers.
    for text in (NUMBER, NUMBER.removeprefix("+")):
        hidden[f"SHA-256 of {text}"] = hashlib.sha256(text.encode()).digest()
    header, tokens = await admin(system)
    async with system.client(None, "server_port") as server, system.client() as gateway:
        server.headers.update(header)
        hidden |= await administer_in_every_way(server, recipient, "marked@example.com")
        message_id = await submit_in_every_way(gateway)
        async with system.client(None, "server_port") as person:
            tokens |= await sign_in_in_every_way(person, "marked@example.com")
        internal = {"client_id": "demo", "sender_number": NUMBER, "message_body": BODY}
        async with system.client("services/internal", "server_port") as service:
            for change in ({}, {"sender_number": BODY}, {"message_id": BODY}, {BODY: NUMBER}):
                answer = await service.post("/internal/messages/register", json=internal | change)
                assert answer.status_code == (400 if change else 200)

        async def delivered() -> bool:
            found = (await gateway.get(f"/api/v1/messages/{message_id}")).json()
            return found["status"] == "delivered"

        await systems.wait_until(delivered, within=60)
        await eventually(
            lambda: system.query(
                "SELECT 1 FROM messages WHERE message_id=%s AND status='delivered'", message_id
            )
        )
        for query in (f"search={NUMBER}", f"search={BODY}", f"{BODY}=1"):
            answer = await server.get(f"/admin/messages?{query.replace('+', '%2B')}")
            assert answer.status_code == (200 if NUMBER in query else 400)
        opened = await server.get(f"/portal/messages/{message_id}?decrypt=true")
        assert (opened.json()["message_body"], opened.json()["sender_number"]) == (BODY, NUMBER)
        await server.post(f"/admin/messages/{message_id}/resend", json={})
    hidden |= {name: token.encode() for name, token in tokens.items()}
    # A JWT's signature is the secret of it; the rest says who, when and what for.
    hidden |= {f"signature of {n}": t.rpartition(".")[2].encode() for n, t in tokens.items() if "." in t}
    hidden |= await secrets.keys(system, PASSPHRASE)
    assert len(hidden) > 30
    places = [*await secrets.redis(system), *await shown(system, header, message_id)]
    places += [*secrets.tables(system), *secrets.processes(system)]
    assert secrets.seen(hidden, iter(places)) == []

    def archived() -> bool:
        segments = (each for each in secrets.files(system) if each[0].endswith(".zst"))
        return bool(secrets.seen({"plain": PLAIN.encode()}, segments))

    await eventually(archived)
    system.down()
    assert secrets.seen(hidden, secrets.files(system)) == []
    seen = " ".join(secrets.seen({"plain": PLAIN.encode()}, iter([*places, *secrets.files(system)])))
    for place in (
        "table audit_log", "redis ", "valkey/", "mariadb/", "events tail", "/audit/events", "in export", "all.jsonl",
        "demo.csv", "archive/",
    ):  # fmt: skip
        assert place in seen, f"the search does not see {place}"
