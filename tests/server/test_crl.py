"""The revocation list, as those outside see it: public, signed, complete, fresh; and certificates that end soon."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from cryptography import x509
from structlog.testing import capture_logs

from broker import clock
from broker.embedded.valkey import Valkey
from broker.events import connection
from broker.events.notices import Notices
from broker.services.ca.signer import Signer
from broker.services.server.admin import certificates_expiry, crl
from broker.services.server.admin.certificates_expiry import ExpiryWatch
from broker.web import metrics
from support.calling import Caller
from support.proxy import proxy_to_port
from support.waiting import wait_until
from support.world import SYSTEM, World

HOUR_MS, DAY_MS = 3_600_000, 86_400_000


@pytest.fixture
def anybody(world, server) -> Caller:
    """Without certificate and token."""
    return Caller(server.port, world.pki.client_context())


async def revoke(world, server, issued, reason: str = "keyCompromise") -> None:
    """Revoked by another process, and known to this server."""
    await world.certificates.revoke_certificate(fingerprint=issued.fingerprint, reason=reason, actor=SYSTEM)
    await known(server, issued, "revoked")


async def known(server, issued, status: str) -> None:
    """Return once this server's registry says so."""

    def so() -> bool:
        entry = server.trust.certificate(issued.fingerprint)
        return entry is not None and entry.status == status

    await wait_until(so)


async def serials(caller: Caller) -> set[str]:
    der = (await caller.get("/crl.der")).body
    return {f"{line.serial_number:x}" for line in x509.load_der_x509_crl(der)}


def verified(world, directory: Path, name: str) -> str:
    done = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-crl_check", "-CAfile", str(world.pki.ca), "-CRLfile",
         str(directory / "crl.pem"), str(world.pki.directory / f"{world.log_name}-{name}.crt")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


async def test_openssl_obeys_it(world, server, anybody, tmp_path):
    """The signature verifies; who was revoked is refused by its reason, the others pass; DER is the same list."""
    good, bad = await world.producer("good"), await world.producer("bad")
    await known(server, good, "active")
    await revoke(world, server, bad)
    pem, der = await anybody.get("/crl.pem"), await anybody.get("/crl.der")
    assert (pem.status, der.status) == (200, 200)
    assert pem.headers["content-type"] == "application/x-pem-file"
    assert der.headers["content-type"] == "application/pkix-crl"
    assert x509.load_pem_x509_crl(pem.body) == x509.load_der_x509_crl(der.body)
    (tmp_path / "crl.pem").write_bytes(pem.body)
    told = subprocess.run(
        ["openssl", "crl", "-in", str(tmp_path / "crl.pem"), "-noout", "-CAfile", str(world.pki.ca)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "verify OK" in told.stdout + told.stderr
    assert "OK" in verified(world, tmp_path, "good")
    assert "certificate revoked" in verified(world, tmp_path, "bad")


async def test_it_changes_with_those_on_it_alone(world, server, anybody):
    """The same bytes and ETag whatever else happens; 304 to who has it; another one after a revocation."""
    shop = await world.producer("shop")
    first = await anybody.get("/crl.pem")
    assert first.headers["cache-control"] == "public, max-age=60"
    etag = first.headers["etag"]
    await world.producer("other")
    await wait_until(lambda: server.trust.client("other"))
    assert (await anybody.get("/crl.pem")).body == first.body
    for held in (etag, f"W/{etag}", f'"x", {etag}', "*"):
        same = await anybody.get("/crl.pem", headers={"if-none-match": held})
        assert (same.status, same.body, same.headers["etag"]) == (304, b"", etag)
    assert (await anybody.get("/crl.der", headers={"if-none-match": etag})).status == 200
    await revoke(world, server, shop)
    after = await anybody.get("/crl.pem", headers={"if-none-match": etag})
    assert (after.status, after.headers["etag"] != etag) == (200, True)
    assert await serials(anybody) == {shop.serial}


async def test_it_is_signed_anew_before_it_runs_out(world, server, anybody, monkeypatch):
    """Good for `crl_hours`, signed again after half of that, with a higher number; nobody has to ask for it."""
    ahead = SimpleNamespace(ms=0)
    monkeypatch.setattr(
        crl, "clock", SimpleNamespace(now_ms=lambda: clock.now_ms() + ahead.ms, iso=clock.iso)
    )

    async def current() -> x509.CertificateRevocationList:
        return x509.load_der_x509_crl((await anybody.get("/crl.der")).body)

    def number(found: x509.CertificateRevocationList) -> int:
        return found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number

    first = await current()
    assert (first.next_update_utc - first.last_update_utc).total_seconds() == 24 * 3600
    ahead.ms = 11 * HOUR_MS
    assert await current() == first
    ahead.ms = 13 * HOUR_MS
    second = await current()
    assert number(second) > number(first)
    assert second.next_update_utc > first.next_update_utc


async def test_the_end_of_an_overlap_puts_one_on_it(world, server, anybody, monkeypatch):
    """A certificate that was replaced joins the list by itself when it stops to work, and not before."""
    ahead = SimpleNamespace(ms=0)
    monkeypatch.setattr(
        crl, "clock", SimpleNamespace(now_ms=lambda: clock.now_ms() + ahead.ms, iso=clock.iso)
    )
    old = await world.producer("shop")
    assert await serials(anybody) == set()
    issued = world.pki.authority.issue("shop", "producer")
    await world.certificates.renew_certificate(
        issued.entry("shop", "producer", issued_at_ms=clock.now_ms()), actor=SYSTEM, overlap_ms=HOUR_MS
    )
    await known(server, old, "superseded")
    assert await serials(anybody) == set()
    ahead.ms = HOUR_MS + 1000
    assert await serials(anybody) == {old.serial}


async def test_every_revoked_one_is_on_it(world, server, anybody):
    """Many, and those of an erased client too; a server that starts later says the same."""
    issued = [await world.producer(f"p{n}") for n in range(5)]
    for each in issued[:3]:
        await revoke(world, server, each)
    await world.clients.erase_client("p3", "asked for", actor=SYSTEM)
    await known(server, issued[3], "revoked")
    wanted = {each.serial for each in issued[:4]}
    assert await serials(anybody) == wanted
    async with world.server() as later:
        assert await serials(Caller(later.port, world.pki.client_context())) == wanted


async def test_without_proof_it_says_nothing_new(own_valkey: Valkey, pki, tmp_path, monkeypatch):
    """Redis silent: the list that was signed is handed out until it runs out, and then there is a 503."""
    ahead = SimpleNamespace(ms=0)
    monkeypatch.setattr(
        crl, "clock", SimpleNamespace(now_ms=lambda: clock.now_ms() + ahead.ms, iso=clock.iso)
    )
    client = connection.connect(own_valkey.url)
    world = await World(own_valkey.url, client, pki, tmp_path / "w", "own").create()
    async with (
        proxy_to_port(own_valkey.port) as proxy,
        world.server(url=f"redis://127.0.0.1:{proxy.port}/0") as server,
    ):
        caller = Caller(server.port, pki.client_context())
        first = await caller.get("/crl.der")
        proxy.mode = "silent"
        await wait_until(lambda: not server.trust.fresh())
        ahead.ms = 13 * HOUR_MS
        assert (await caller.get("/crl.der")).body == first.body
        ahead.ms = 25 * HOUR_MS
        refused = await caller.get("/crl.der")
        assert (refused.status, refused.json["error"]) == (503, "ca_unavailable")
        proxy.mode = "pass"
        proxy.cut()
        await wait_until(server.trust.fresh)
        assert (await caller.get("/crl.der")).status == 200
    await client.aclose()


async def test_many_who_ask_at_once_cost_one_signature(world, server, anybody, monkeypatch):
    """Strangers cannot make the authority work: it signs once for what changed once."""
    signed: list[object] = []
    sign = Signer.crl

    async def counted(self, *args, **options):
        signed.append(args)
        return await sign(self, *args, **options)

    monkeypatch.setattr(Signer, "crl", counted)
    await revoke(world, server, await world.producer("shop"))
    answers = await asyncio.gather(*(anybody.get("/crl.der") for _ in range(20)))
    assert len({answer.body for answer in answers}) == 1
    assert len(signed) == 1


# -- What ends soon -------------------------------------------------------------------------------------------


def told(logs: list[dict]) -> list[str]:
    return [line["name"] for line in logs if line["event"] == "certificate_expires"]


async def test_what_ends_soon_is_told_once_a_day_by_one(world, monkeypatch):
    """Of two servers one logs each certificate, the next day again; renewed and revoked ones are nobody's worry."""
    for name, days in (("soon", 10), ("later", 100), ("renewed", 5), ("revoked", 5)):
        await world.clients.register_client(name, actor=SYSTEM)
        issued = world.pki.authority.issue(name, "producer", validity_days=days)
        entry = issued.entry(name, "producer", issued_at_ms=clock.now_ms())
        await world.certificates.record_certificate(entry, actor=SYSTEM)
    successor = world.pki.authority.issue("renewed", "producer")
    await world.certificates.renew_certificate(
        successor.entry("renewed", "producer", issued_at_ms=clock.now_ms()), actor=SYSTEM
    )
    await world.certificates.revoke_certificate(client_id="revoked", reason="superseded", actor=SYSTEM)
    ahead = SimpleNamespace(ms=0)
    fake = SimpleNamespace(now_ms=lambda: clock.now_ms() + ahead.ms, iso=clock.iso)
    monkeypatch.setattr(certificates_expiry, "clock", fake)
    async with world.parts() as one, world.parts() as two:
        watches = [
            ExpiryWatch(
                parts["trust"],
                Signer(world.pki.directory, world.pki.directory / "ca.key"),
                Notices(parts["redis"], world.keys.control),
                days=30,
            )
            for parts in (one, two)
        ]
        with capture_logs() as logs:
            for watch in (*watches, *watches):
                await watch.look()
        assert told(logs) == ["soon"]
        (line,) = [line for line in logs if line["event"] == "certificate_expires"]
        assert (line["log_level"], line["days_left"], line["role"]) == ("warning", 9, "producer")
        ahead.ms = DAY_MS
        with capture_logs() as logs:
            for watch in watches[::-1]:
                await watch.look()
        assert told(logs) == ["soon"]
    text = metrics.exposition().decode()
    assert 'broker_certificates_expiring{role="producer"} 1.0' in text
    assert 'broker_certificates_expiring{role="gateway"} 0.0' in text


async def test_a_running_server_looks_by_itself(world):
    """It counts and tells soon after it started, for the days that the setting says."""
    settings = msgspec.structs.replace(world.settings, certificate_warning_days=400)
    with capture_logs() as logs:
        async with world.server(settings=settings):
            await wait_until(lambda: len(told(logs)) == 5)
    assert sorted(told(logs)) == ["demo", "gateway", "internal", "server", "worker"]


async def test_the_end_of_the_authority_itself_is_told(world, tmp_path):
    """With its key or without: every certificate ends with it."""
    (tmp_path / "ca.crt").write_bytes(world.pki.ca.read_bytes())
    async with world.parts() as parts:
        notices = Notices(parts["redis"], world.keys.control)
        watch = ExpiryWatch(parts["trust"], Signer(tmp_path, tmp_path / "ca.key"), notices, days=3700)
        with capture_logs() as logs:
            await watch.look()
    assert "authority" in told(logs)
    assert 'broker_certificates_expiring{role="authority"} 1.0' in metrics.exposition().decode()
