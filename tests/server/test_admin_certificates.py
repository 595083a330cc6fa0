"""Clients and certificates over the admin API, and what they open at a gateway that runs meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from broker import clock
from broker.events import codec
from broker.services.ca.signer import Signer
from support import log
from support.calling import Caller
from support.serving import connection
from support.waiting import wait_until
from support.world import SYSTEM, World

CERTIFICATES, CLIENTS = "/admin/certificates", "/admin/clients"
GENERATE, RENEW, REVOKE = (f"{CERTIFICATES}/{what}" for what in ("generate", "renew", "revoke"))
DAY_MS = 86_400_000


def openssl(*arguments: str | Path) -> str:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def presenting(world: World, directory: Path, issued: dict) -> ssl.SSLContext:
    """A client's TLS context with the certificate and key of an answer."""
    pair = directory / f"{issued['serial']}.crt", directory / f"{issued['serial']}.key"
    pair[0].write_text(issued["certificate_pem"])
    pair[1].write_text(issued["private_key_pem"])
    return world.pki.client_context(*pair)


def request_pem(*, corrupt: bool = False) -> tuple[ec.EllipticCurvePrivateKey, str]:
    """A key and a signing request for it, which asks for another's name."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "demo")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    der = bytearray(request.public_bytes(Encoding.DER))
    der[-1] ^= corrupt
    return key, x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM).decode()


async def generate(reading, name: str, **options) -> dict:
    answer = await reading.post("admin", GENERATE, {"client_name": name} | options)
    assert answer.status == 201, answer.body
    return answer.json


async def submits(gateway, context, *, raw=None) -> tuple[int, str | None]:
    """Status and error of a message sent with this certificate."""
    answer = await Caller(gateway.port, context).submit(raw=raw)
    return answer.status, answer.json.get("error")


async def answering(gateway, context, wanted: tuple[int, str | None], raw=None) -> None:
    """Return once the gateway, which follows the registry, answers so."""

    async def so() -> bool:
        return await submits(gateway, context, raw=raw) == wanted

    await wait_until(so, what=str(wanted))


async def control(world) -> list[object]:
    found = await log.history(world.redis, world.keys.control)
    return [codec.decode(tag, fields[b"d"]) for tag, fields in found]


@pytest.mark.case("TC-M-009")
async def test_a_certificate_for_somebody_new(reading, tmp_path):
    """201 with everything a producer needs; openssl finds it strictly right; the client is registered with it."""
    answer = await reading.post(
        "admin", GENERATE, {"client_name": "shop", "domain": "shop.example", "validity_days": 90}
    )
    assert answer.status == 201, answer.body
    assert answer.headers["cache-control"] == "no-store"
    made = answer.json
    assert made.keys() == {
        "client_id", "role", "serial", "fingerprint", "certificate_pem", "private_key_pem", "ca_pem",
        "expires_at", "registered",
    }  # fmt: skip
    assert (made["client_id"], made["role"], made["registered"]) == ("shop", "producer", True)
    leaf = x509.load_pem_x509_certificate(made["certificate_pem"].encode())
    assert leaf.fingerprint(hashes.SHA256()).hex() == made["fingerprint"]
    assert f"{leaf.serial_number:x}" == made["serial"]
    assert leaf.subject.rfc4514_string() == "CN=shop,OU=producer,O=Message Broker"
    assert abs(leaf.not_valid_after_utc.timestamp() * 1000 - clock.now_ms() - 90 * DAY_MS) < 60_000
    assert load_pem_private_key(made["private_key_pem"].encode(), None).public_key() == leaf.public_key()
    (tmp_path / "ca.pem").write_text(made["ca_pem"])
    (tmp_path / "leaf.pem").write_text(made["certificate_pem"])
    assert "OK" in openssl(
        "verify",
        "-x509_strict",
        "-purpose",
        "sslclient",
        "-CAfile",
        tmp_path / "ca.pem",
        tmp_path / "leaf.pem",
    )
    async with reading.world.gateway() as gateway:
        await answering(gateway, presenting(reading.world, tmp_path, made), (202, None))
    client = (await reading.get("admin", f"{CLIENTS}/shop")).json
    assert (client["domain"], client["status"]) == ("shop.example", "active")
    assert client["certificate"]["fingerprint"] == made["fingerprint"]
    (listed,) = (await reading.get("admin", f"{CERTIFICATES}?client_id=shop")).json["certificates"]
    assert (listed["serial"], listed["status"]) == (made["serial"], "active")
    assert listed["expires_at"] == made["expires_at"]


async def test_one_is_active(reading):
    """A second one is a 409, also of many at once for a new name; what was refused left nothing behind."""
    await reading.person("admin")
    answers = await asyncio.gather(
        *(reading.post("admin", GENERATE, {"client_name": "shop"}) for _ in range(5))
    )
    assert sorted(answer.status for answer in answers) == [201, 409, 409, 409, 409]
    events = [
        type(event).__name__
        for event in await control(reading.world)
        if getattr(event, "client_id", None) == "shop"
    ]
    assert events == ["ClientRegistered", "CertIssued"]
    again = await reading.post("admin", GENERATE, {"client_name": "demo"})
    assert (again.status, again.json["error"]) == (409, "conflict")
    assert "active certificate" in again.json["detail"]


async def test_a_signing_request_keeps_its_key(reading, tmp_path):
    """Without a private key in the answer; names in the request count for nothing; a bad proof is refused."""
    key, pem = request_pem()
    made = await generate(reading, "agency", csr_pem=pem)
    assert "private_key_pem" not in made
    leaf = x509.load_pem_x509_certificate(made["certificate_pem"].encode())
    assert leaf.public_key() == key.public_key()
    assert leaf.subject.rfc4514_string().startswith("CN=agency,")
    before = await control(reading.world)
    for bad in (request_pem(corrupt=True)[1], "rubbish", "", "x" * 20_000):
        answer = await reading.post("admin", GENERATE, {"client_name": "other", "csr_pem": bad})
        assert (answer.status, answer.json["details"][0]["field"]) == (400, "csr_pem")
    assert await control(reading.world) == before


async def test_what_is_wrong_with_a_certificate_is_named(reading):
    """400 with the field, 409 for what stands against it; nothing is written."""
    await reading.person("admin")
    await reading.world.clients.erase_client("acme", "asked for", actor=SYSTEM)
    before = await control(reading.world)
    for path, body, status, field in (
        (GENERATE, {"client_name": "Not A Name"}, 400, "client_name"),
        (GENERATE, {"client_name": "a", "validity_days": 0}, 400, "validity_days"),
        (GENERATE, {"client_name": "a", "validity_days": 826}, 400, "validity_days"),
        (GENERATE, {"client_name": "a", "role": "admin"}, 400, "role"),
        (GENERATE, {"client_name": "a", "role": "gateway", "domain": "x"}, 400, "domain"),
        (GENERATE, {"client_name": "a", "role": "gateway", "ips": ["300.1.1.1"]}, 400, "ips"),
        (GENERATE, {"client_name": "a", "domain": "x" * 300}, 400, "domain"),
        (GENERATE, {"client_name": "demo", "domain": "another"}, 409, None),
        (GENERATE, {"client_name": "acme"}, 409, None),
        (RENEW, {"client_name": "nobody"}, 404, None),
        (RENEW, {"client_name": "acme"}, 404, None),
        (RENEW, {"client_name": "demo", "fingerprint": "zz"}, 400, "fingerprint"),
        (RENEW, {"client_name": "demo", "fingerprint": "00"}, 404, None),
        (RENEW, {"client_name": "demo", "overlap_hours": -1}, 400, "overlap_hours"),
        (REVOKE, {"client_name": "demo", "reason": " "}, 400, "reason"),
        (REVOKE, {"client_name": "demo", "reason": "certificateHold"}, 400, "reason"),
        (REVOKE, {"reason": "superseded"}, 400, "client_name"),
        (REVOKE, {"client_name": "demo", "serial": "1", "reason": "superseded"}, 400, "client_name"),
        (REVOKE, {"serial": "not hex", "reason": "superseded"}, 400, "serial"),
        (REVOKE, {"serial": "abc", "reason": "superseded"}, 404, None),
        (REVOKE, {"fingerprint": "abc", "reason": "superseded"}, 404, None),
        (REVOKE, {"client_name": "nobody", "reason": "superseded"}, 404, None),
    ):
        answer = await reading.post("admin", path, body)
        assert answer.status == status, (body, answer.body)
        assert [detail["field"] for detail in answer.json["details"]] == ([field] if field else []), body
    assert await control(reading.world) == before


async def test_a_renewal_overlaps(reading, tmp_path):
    """Both certificates work; the one before is listed with its end; without an overlap it ends at once."""
    world = reading.world
    first = await generate(reading, "shop")
    answer = await reading.post(
        "admin", RENEW, {"client_name": "shop", "overlap_hours": 2, "validity_days": 30}
    )
    assert answer.status == 201, answer.body
    second = answer.json
    assert second["replaces"] == first["fingerprint"]
    assert abs(clock.parse_iso(second["overlap_until"]) - clock.now_ms() - 2 * 3_600_000) < 60_000
    old, new = (presenting(world, tmp_path, each) for each in (first, second))
    async with world.gateway() as gateway:
        await answering(gateway, new, (202, None))
        assert await submits(gateway, old) == (202, None)
        third = await reading.post("admin", RENEW, {"client_name": "shop", "overlap_hours": 0})
        assert third.status == 201, third.body
        await answering(gateway, new, (403, "certificate_revoked"))
        assert await submits(gateway, old) == (202, None)
        await answering(gateway, presenting(world, tmp_path, third.json), (202, None))
    rows = (await reading.get("admin", f"{CERTIFICATES}?client_id=shop")).json["certificates"]
    assert [row["status"] for row in rows] == ["active", "superseded", "superseded"]
    assert (rows[2]["replaced_by"], rows[2]["overlap_until"]) == (
        second["fingerprint"],
        second["overlap_until"],
    )
    assert [row["replaces"] for row in rows] == [second["fingerprint"], first["fingerprint"], None]


@pytest.mark.case("TC-M-010")
async def test_revoked_by_name_serial_or_fingerprint(reading):
    """200 with what was revoked, however hex is spelt; again revokes nothing more; a reason has RFC 5280's name or is words."""
    made = {name: await generate(reading, name) for name in ("one", "two", "three")}
    serial = made["two"]["serial"].upper()
    colons = ":".join(made["three"]["fingerprint"].upper()[n : n + 2] for n in range(0, 64, 2))
    for name, selector in (
        ("one", {"client_name": "one"}),
        ("two", {"serial": f"00{serial}"}),
        ("three", {"fingerprint": colons}),
    ):
        answer = await reading.post("admin", REVOKE, selector | {"reason": "key_compromise"})
        assert answer.status == 200, answer.body
        (revoked,) = answer.json["revoked"]
        assert (revoked["client_id"], revoked["serial"]) == (name, made[name]["serial"])
        assert revoked["reason"] == "keyCompromise"
        again = await reading.post("admin", REVOKE, selector | {"reason": "superseded"})
        assert (again.status, again.json) == (200, {"revoked": []})
    lost = await generate(reading, "four")
    answer = await reading.post("admin", REVOKE, {"client_name": "four", "reason": "Laptop lost"})
    assert (answer.status, answer.json["revoked"][0]["reason"]) == (200, "Laptop lost")
    rows = (await reading.get("admin", f"{CERTIFICATES}?status=revoked")).json["certificates"]
    assert {row["serial"]: row["reason"] for row in rows} == {
        each["serial"]: "keyCompromise" for each in made.values()
    } | {lost["serial"]: "Laptop lost"}
    # Who was revoked may have a new one.
    assert "registered" not in await generate(reading, "one")


@pytest.mark.case("TC-I-006", "TC-S-005")
async def test_the_life_of_a_certificate(reading, tmp_path):
    """Generated, used, renewed, revoked: refused on the open connection and on new ones, and in the revocation list."""
    world = reading.world
    async with world.gateway() as gateway, contextlib.AsyncExitStack() as stack:
        first = await generate(reading, "shop")
        context = presenting(world, tmp_path, first)
        await answering(gateway, context, (202, None))
        raw = await stack.enter_async_context(connection(gateway.port, context))
        assert await submits(gateway, context, raw=raw) == (202, None)
        renewed = (await reading.post("admin", RENEW, {"client_name": "shop"})).json
        successor = presenting(world, tmp_path, renewed)
        await answering(gateway, successor, (202, None))
        assert await submits(gateway, context, raw=raw) == (202, None)

        revoked = await reading.post("admin", REVOKE, {"client_name": "shop", "reason": "keyCompromise"})
        assert {each["serial"] for each in revoked.json["revoked"]} == {first["serial"], renewed["serial"]}
        await answering(gateway, context, (403, "certificate_revoked"), raw=raw)
        for each in (context, successor):
            assert await submits(gateway, each) == (403, "certificate_revoked")
        (tmp_path / "crl.pem").write_bytes((await reading.anonymous.get("/crl.pem")).body)
        for issued in (first, renewed):
            told = openssl(
                "verify", "-x509_strict", "-crl_check", "-CAfile", world.pki.ca,
                "-CRLfile", tmp_path / "crl.pem", tmp_path / f"{issued['serial']}.crt",
            )  # fmt: skip
            assert "certificate revoked" in told
    # A gateway that starts later, from Redis alone, knows it too.
    async with world.gateway() as later:
        assert await submits(later, context) == (403, "certificate_revoked")


@pytest.mark.case("TC-S-002")
async def test_a_service_s_certificate_ends_with_its_revocation(reading, tmp_path):
    """A worker's open connection to the internal API is refused too, though nobody closed it."""
    made = await generate(reading, "worker-7", role="worker")
    context = presenting(reading.world, tmp_path, made)
    caller = Caller(reading.server.port, context)
    async with connection(reading.server.port, context) as raw:

        async def answers(wanted: tuple[int, str]) -> bool:
            answer = await caller.post("/internal/messages/status", b"{", raw=raw)
            return (answer.status, answer.json["error"]) == wanted

        await wait_until(lambda: answers((400, "malformed_json")))
        revoked = await reading.post("admin", REVOKE, {"client_name": "worker-7", "reason": "superseded"})
        assert revoked.status == 200
        # The server that answered knows it already.
        assert await answers((403, "certificate_revoked"))


async def test_certificates_of_services(reading):
    """Names for servers; several of one name, of which a renewal says which; they are nobody's client."""
    first = await generate(reading, "edge", role="gateway", dns=["edge.example"], ips=["10.0.0.7"])
    leaf = x509.load_pem_x509_certificate(first["certificate_pem"].encode())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["edge.example", "10.0.0.7"]
    assert "registered" not in first
    second = await generate(reading, "edge", role="gateway")
    unclear = await reading.post("admin", RENEW, {"client_name": "edge"})
    assert (unclear.status, unclear.json["details"][0]["field"]) == (400, "fingerprint")
    chosen = await reading.post(
        "admin", RENEW, {"client_name": "edge", "fingerprint": second["fingerprint"].upper()}
    )
    assert (chosen.json["role"], chosen.json["replaces"]) == ("gateway", second["fingerprint"])
    rows = (await reading.get("admin", f"{CERTIFICATES}?role=gateway&client_id=edge")).json["certificates"]
    assert sorted(row["status"] for row in rows) == ["active", "active", "superseded"]
    assert (await reading.get("admin", f"{CLIENTS}/edge")).status == 404


async def test_lists_of_certificates(reading):
    """By what became of them, of one client or role, in pages."""
    world = reading.world
    late = world.pki.expired("late")[2]
    await world.clients.register_client("late", actor=SYSTEM)
    await world.certificates.record_certificate(
        late.entry("late", "producer", issued_at_ms=clock.now_ms()), actor=SYSTEM
    )
    for days in (20, 10, 40):
        await generate(reading, f"d{days}", validity_days=days)
    await generate(reading, "gone")
    await reading.post("admin", REVOKE, {"client_name": "gone", "reason": "superseded"})
    await generate(reading, "moved")
    await reading.post("admin", RENEW, {"client_name": "moved"})

    async def names(query: str) -> list[str]:
        answer = await reading.get("admin", f"{CERTIFICATES}?role=producer&{query}")
        assert answer.status == 200, answer.body
        return [row["client_id"] for row in answer.json["certificates"]]

    assert await names("status=expired") == ["late"]
    assert await names("status=revoked") == ["gone"]
    assert await names("status=superseded") == ["moved"]
    assert await names("status=expiring") == ["d10", "d20"]
    active = ["moved", "d40", "d10", "d20", "acme", "demo"]
    assert await names("status=active") == active
    everything = ["moved", "moved", "gone", "d40", "d10", "d20", "late", "acme", "demo"]
    assert await names("status=all") == await names("") == everything
    page = (await reading.get("admin", f"{CERTIFICATES}?role=producer&per_page=4")).json
    assert (page["total"], page["pages"]) == (9, 3)
    seen = [row["client_id"] for row in page["certificates"]]
    await generate(reading, "newest")
    while page["next"]:
        query = f"role=producer&per_page=4&cursor={page['next']}"
        page = (await reading.get("admin", f"{CERTIFICATES}?{query}")).json
        seen += [row["client_id"] for row in page["certificates"]]
    assert seen == everything
    soonest = (await reading.get("admin", f"{CERTIFICATES}?status=expiring&per_page=1")).json
    after = f"status=expiring&per_page=1&cursor={soonest['next']}"
    rows = (await reading.get("admin", f"{CERTIFICATES}?{after}")).json["certificates"]
    assert [row["client_id"] for row in rows] == ["d20"]
    foreign = await reading.get("admin", f"/admin/users?per_page=1&cursor={soonest['next']}")
    assert (foreign.status, foreign.json["details"][0]["field"]) == (400, "cursor")
    for query, field in (("status=lost", "status"), ("role=king", "role"), ("client_id=%00", "client_id")):
        answer = await reading.get("admin", f"{CERTIFICATES}?{query}")
        assert (answer.status, answer.json["details"][0]["field"]) == (400, field)


async def test_a_server_without_the_authority_s_key(world, url, tmp_path):
    """503 that says so, for what needs it; revoking does not, and nothing half done stays behind."""
    from support import reading

    await world.producer("shop")
    async with reading.opened(world, url, authority=Signer(tmp_path, tmp_path / "ca.key")) as found:
        await found.person("admin")
        before = await control(world)
        for path, body in ((GENERATE, {"client_name": "new"}), (RENEW, {"client_name": "shop"})):
            answer = await found.post("admin", path, body)
            assert (answer.status, answer.json["error"]) == (503, "ca_unavailable")
            assert answer.headers["retry-after"] == "30"
            assert "certificate authority" in answer.json["detail"]
            assert str(tmp_path) not in answer.json["detail"]
        for path in ("/crl.pem", "/crl.der"):
            assert (await found.anonymous.get(path)).json["error"] == "ca_unavailable"
        assert await control(world) == before
        revoked = await found.post("admin", REVOKE, {"client_name": "shop", "reason": "keyCompromise"})
        assert len(revoked.json["revoked"]) == 1


async def test_secrets_are_told_to_nobody_but_the_asker(reading):
    """A private key is in its answer and nowhere in Redis or MySQL."""
    made = await generate(reading, "shop")
    secret = made["private_key_pem"].splitlines()[1].encode()
    for key in [key async for key in reading.world.redis.scan_iter(match="*", count=1000)]:
        if reading.world.log_name.encode() in key:
            assert secret not in (await reading.world.redis.dump(key) or b"")
    for table in ("certificates", "audit_log", "clients"):
        assert secret not in repr(await reading.store.select(f"SELECT * FROM {table}")).encode()


# -- Clients --------------------------------------------------------------------------------------------------


async def test_clients(reading):
    """Registered once, listed by name, routed by the rules of each channel; a made secret is told only then."""
    answer = await reading.post("admin", CLIENTS, {"client_id": "shop", "domain": "shop.example"})
    assert (answer.status, answer.json) == (201, {"client_id": "shop", "domain": "shop.example"})
    assert answer.headers["location"] == f"{CLIENTS}/shop"
    assert (await reading.post("admin", CLIENTS, {"client_id": "shop"})).status == 409
    one = (await reading.get("admin", f"{CLIENTS}/shop")).json
    assert (one["domain"], one["channel"], one["certificate"]) == ("shop.example", None, None)

    async def route(body: dict, name: str = "shop"):
        return await reading.request("admin", "PUT", f"{CLIENTS}/{name}/route", body)

    made = await route({"channel": "webhook", "target": "https://shop.example/hook"})
    assert made.status == 200, made.body
    assert made.json["secret"].startswith("whsec_")
    given = await route(
        {"channel": "webhook", "target": "https://shop.example/hook", "secret": "of their own"}
    )
    assert "secret" not in given.json
    one = await reading.get("admin", f"{CLIENTS}/shop")
    assert (one.json["channel"], one.json["target"]) == ("webhook", "https://shop.example/hook")
    assert b"whsec" not in one.body
    assert (await route({"channel": "simulated", "target": "success=0.5"})).status == 200
    assert (await route({"channel": "inbox"})).status == 200
    for body, field in (
        ({"channel": "pigeon"}, "channel"),
        ({"channel": "webhook"}, "target"),
        ({"channel": "webhook", "target": "ftp://x"}, "target"),
        ({"channel": "webhook", "target": "https://x/", "secret": ""}, "secret"),
        ({"channel": "webhook", "target": "https://x/", "secret": "whsec_!"}, "secret"),
        ({"channel": "inbox", "target": "x"}, "target"),
        ({"channel": "inbox", "secret": "x"}, "secret"),
        ({"channel": "simulated", "target": "success=often"}, "target"),
    ):
        answer = await route(body)
        assert (answer.status, answer.json["details"][0]["field"]) == (400, field), body
    for name in ("nobody", "%C3%A9", "Nobody"):
        assert (await route({"channel": "inbox"}, name)).status == 404
        assert (await reading.get("admin", f"{CLIENTS}/{name}")).status == 404
    await reading.world.clients.erase_client("acme", "asked for", actor=SYSTEM)
    await reading.caught_up()

    async def names(query: str) -> list[str]:
        found = (await reading.get("admin", f"{CLIENTS}?{query}")).json["clients"]
        return [each["client_id"] for each in found]

    assert await names("") == ["acme", "demo", "shop"]
    assert await names("status=active") == ["demo", "shop"]
    assert await names("status=erased") == ["acme"]
    assert await names("search=ho") == ["shop"]
    assert await names("per_page=2&page=2") == ["shop"]
    held = {
        each["client_id"]: each["certificate"]
        for each in (await reading.get("admin", CLIENTS)).json["clients"]
    }
    assert held["demo"]["expires_at"].endswith("Z")
    assert held["acme"] is None


@pytest.mark.parametrize("name", ["reader", "auditor"])
async def test_nobody_but_admins(reading, name):
    """403 on every route, before the body is looked at; nothing is written."""
    await reading.person(name)
    before = await control(reading.world)
    for method, path in (
        ("POST", GENERATE), ("POST", RENEW), ("POST", REVOKE), ("GET", CERTIFICATES), ("POST", CLIENTS),
        ("GET", CLIENTS), ("GET", f"{CLIENTS}/demo"), ("PUT", f"{CLIENTS}/demo/route"),
    ):  # fmt: skip
        answer = await reading.request(name, method, path, b"{")
        assert (answer.status, answer.json["error"]) == (403, "forbidden"), path
    assert await control(reading.world) == before


async def test_bodies_of_certificates_are_read_strictly(reading):
    """Malformed or too large: 400, 413, and nothing done."""
    for body, status in (
        (b"{", 400),
        (b'{"client_name":"a","client_name":"b"}', 400),
        (msgspec.json.encode({"client_name": "a", "csr_pem": "x" * 70_000}), 413),
    ):
        assert (await reading.post("admin", GENERATE, body)).status == status
