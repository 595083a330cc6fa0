"""Who is let in: judged per request, against a registry that is proved fresh."""

from __future__ import annotations

import asyncio
import ssl

import pytest

from broker import clock
from broker.embedded.valkey import Valkey
from broker.events import connection as redis_connection
from support.calling import MESSAGE, Caller
from support.pki import Pki
from support.proxy import proxy_to_port
from support.serving import connection
from support.waiting import wait_until
from support.world import SYSTEM, World

GUARDED = [
    ("POST", "/api/v1/messages"),
    ("POST", "/api/v1/messages/batch"),
    ("GET", "/api/v1/messages/01890000-0000-7000-8000-000000000000"),
    ("GET", "/metrics"),
]


async def refusals(caller: Caller) -> set[tuple[int, str]]:
    """What every guarded route answers."""
    answers = [await caller.request(method, path, b"{") for method, path in GUARDED]
    return {(answer.status, answer.json["error"]) for answer in answers}


@pytest.mark.case("TC-P-004", "TC-S-001")
async def test_without_a_certificate(world, gateway):
    """401 on every route but health, before the body is looked at."""
    caller = Caller(gateway.port, world.pki.client_context())
    assert await refusals(caller) == {(401, "client_certificate_required")}
    assert (await caller.get("/api/v1/health")).status == 200


@pytest.mark.case("TC-S-003")
async def test_a_certificate_of_another_authority_fails_the_handshake(world, gateway, tmp_path):
    """Self-signed, of another CA, or ours with another name written into it: TLS itself refuses."""
    other = Pki(tmp_path / "other")
    cert, key, _ = other.client()
    for pair in ((cert, key), world.pki.self_signed(), world.pki.tampered(claims="demo")):
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            await Caller(gateway.port, world.pki.client_context(*pair)).submit()


@pytest.mark.case("TC-S-004")
@pytest.mark.parametrize("registered", [False, True])
async def test_an_expired_certificate(world, gateway, registered):
    """403 that says so, registered or not."""
    cert, key, issued = world.pki.expired("demo")
    if registered:
        entry = issued.entry("demo", "producer", issued_at_ms=issued.not_before_ms)
        await world.certificates.renew_certificate(entry, actor=SYSTEM)
        await wait_until(lambda: gateway.trust.certificate(issued.fingerprint))
    caller = Caller(gateway.port, world.pki.client_context(cert, key))
    assert await refusals(caller) == {(403, "certificate_expired")}


@pytest.mark.parametrize("registered", [False, True])
async def test_a_certificate_that_is_not_for_clients(world, gateway, registered):
    """403 that says so, though the certificate is ours, and whether it is registered or not."""
    cert, key, issued = world.pki.for_servers()
    if registered:
        entry = issued.entry("demo", "producer", issued_at_ms=clock.now_ms())
        gateway.trust._entries[f"cert:{issued.fingerprint}"] = entry
    caller = Caller(gateway.port, world.pki.client_context(cert, key))
    assert await refusals(caller) == {(403, "certificate_purpose")}


async def test_a_certificate_that_expires_while_its_connection_is_open(world, gateway):
    """The date is judged at each request, not at the handshake."""
    issued = await world.producer("brief")
    async with connection(gateway.port, world.contexts["brief"]) as raw:
        caller = Caller(gateway.port, world.contexts["brief"])

        async def answers(status: int) -> bool:
            return (await caller.submit(raw=raw)).status == status

        await wait_until(lambda: answers(202))
        entry = gateway.trust.certificate(issued.fingerprint)
        past = type(entry)(
            **{f: getattr(entry, f) for f in entry.__struct_fields__} | {"not_after_ms": clock.now_ms()}
        )
        gateway.trust._entries[f"cert:{issued.fingerprint}"] = past
        assert (await caller.submit(raw=raw)).json["error"] == "certificate_expired"


async def test_a_certificate_that_is_not_registered(world, gateway):
    """Signed by our CA is not enough."""
    cert, key, _ = world.pki.client("stranger")
    caller = Caller(gateway.port, world.pki.client_context(cert, key))
    assert await refusals(caller) == {(403, "client_unknown")}


@pytest.mark.parametrize("role", ["server", "worker", "internal", "gateway"])
async def test_a_certificate_of_another_purpose(world, gateway, role):
    """Service certificates may not submit or read messages; metrics they may read."""
    caller = Caller(gateway.port, world.contexts[role])
    for method, path in GUARDED[:3]:
        answer = await caller.request(method, path, b"{")
        assert (answer.status, answer.json["error"]) == (403, "certificate_purpose")
    assert (await caller.get("/metrics")).status == 200


@pytest.mark.case("TC-P-005", "TC-S-005")
async def test_revocation_bites_on_an_open_connection(world, gateway):
    """202 before, 403 certificate_revoked after, on the same connection; new ones too."""
    issued = await world.producer("short")
    caller = Caller(gateway.port, world.contexts["short"])
    async with connection(gateway.port, world.contexts["short"]) as raw:

        async def answers(status: int) -> bool:
            return (await caller.submit(raw=raw)).status == status

        await wait_until(lambda: answers(202))
        await world.certificates.revoke_certificate(
            fingerprint=issued.fingerprint, reason="keyCompromise", actor=SYSTEM
        )
        await wait_until(lambda: answers(403))
        assert (await caller.submit(raw=raw)).json["error"] == "certificate_revoked"
    assert await refusals(caller) == {(403, "certificate_revoked")}


async def test_an_erased_client(world, gateway):
    """Its certificates were revoked with it: 403."""
    await world.producer("gone")
    caller = Caller(gateway.port, world.contexts["gone"])

    async def answers(status: int) -> bool:
        return (await caller.submit()).status == status

    await wait_until(lambda: answers(202))
    await world.clients.erase_client("gone", "asked for", actor=SYSTEM)
    await wait_until(lambda: answers(403))


async def test_a_client_whose_key_is_not_here(world, gateway, demo):
    """Keys that are missing may come: 503 with Retry-After, not a loss."""
    await wait_until(lambda: gateway.trust.client("demo"))
    gateway.trust._take_keys("demo", None)
    for path, body in (("/api/v1/messages", MESSAGE), ("/api/v1/messages/batch", {"messages": [MESSAGE]})):
        answer = await demo.post(path, body)
        assert (answer.status, answer.json["error"]) == (503, "key_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
    gateway.trust._take_keys("demo", b"not what was wrapped")
    assert (await demo.submit()).json["error"] == "key_unavailable"


async def test_no_proof_of_freshness_no_service(own_valkey: Valkey, pki, tmp_path):
    """A half-dead connection to Redis must not leave a revoked certificate working: 503 trust_unproved."""
    client = redis_connection.connect(own_valkey.url)
    world = await World(own_valkey.url, client, pki, tmp_path / "w", "own").create()
    async with (
        proxy_to_port(own_valkey.port) as proxy,
        world.gateway(url=f"redis://127.0.0.1:{proxy.port}/0") as gateway,
    ):
        caller = Caller(gateway.port, world.contexts["demo"])
        assert (await caller.submit()).status == 202
        proxy.mode = "silent"
        await wait_until(lambda: not gateway.trust.fresh())
        assert await refusals(caller) == {(503, "trust_unproved")}
        answer = await caller.submit()
        assert int(answer.headers["retry-after"]) >= 1
        anonymous = await Caller(gateway.port, pki.client_context()).submit()
        assert anonymous.status == 401
        proxy.mode = "pass"
        proxy.cut()
        await wait_until(gateway.trust.fresh)
        assert (await caller.submit()).status == 202
    await client.aclose()
