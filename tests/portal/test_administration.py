"""What admins do from the portal, in a real browser: people, certificates, messages, the pipeline."""

from __future__ import annotations

import base64
import re
import ssl

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from broker.preparation import opened
from support import browsing, looking
from support.browsing import HOSTILE, NUMBER, register
from support.system import eventually
from support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.case("TC-PT-009", "TC-PT-014")
@pytest.mark.parametrize(
    ("email", "status"),
    [("boss@example.com", 200), ("reader@example.com", 403), ("auditor@example.com", 403)],
)
async def test_admin_pages_are_for_admins(profiles, email, status):
    """Each answers an admin, and refuses everybody else with a page. (Every route and form: test_access.)"""
    async with profiles(email) as somebody:
        for path in ("/admin", "/admin/users"):
            assert (await somebody.go(path)).status == status, path
        assert ("Not for you" in await somebody.text()) == (status == 403)
        assert (await somebody.page.locator('nav a[href="/admin"]').count() == 1) == (status == 200)


@pytest.mark.case("TC-PT-010")
async def test_an_admin_creates_somebody_who_signs_in(browser, system, admin):
    """With the form; what is wrong is said beside its field, and the rest of the form is kept."""
    await admin.go("/admin/users")
    for email, password, clients, field in (
        ("boss@example.com", "a good long one", "", None),
        ("new@example.com", "aaaaaaaaaa", "", "password"),
        ("new@example.com", "a good long one", "nobody-has-this", "clients"),
    ):
        await admin.page.fill("#email", email)
        await admin.page.fill("#password", password)
        await admin.page.fill("#clients", clients)
        await admin.press("#create button")
        assert await admin.page.locator("[role=alert].bad").count() == 1
        assert await admin.page.input_value("#email") == email
        if field:
            assert await admin.page.locator(f"#{field}-wrong").count() == 1
    await admin.page.fill("#email", "New@Example.com")
    await admin.page.fill("#password", "a good long one")
    await admin.page.select_option("#create #role", "user")
    await admin.page.fill("#clients", "demo, acme")
    await admin.press("#create button")
    assert "The account is there" in await admin.text()
    assert "new@example.com" in await admin.page.inner_text("h1")
    async with browsing.person(system, browser) as new:
        await new.go("/login")
        await new.sign_in("new@example.com", "a good long one")
        assert new.path == "/"
        # Another role, and then no account: both at their next request.
        await admin.page.select_option("#role", "auditor")
        await admin.press("#role-form button")
        assert "The role was changed." in await admin.text()
        assert (await new.go("/messages")).status == 403
        await admin.page.fill("#reason", "left us")
        await admin.press("#disable-form button")
        assert "disabled" in await admin.text()
        await new.go("/profile")
        assert new.path.startswith("/login")


async def test_the_last_admin_stays(admin):
    """Two admins can be one; the last one cannot be taken away, and the page says so."""
    ids = [row["user_id"] for row in admin.system.query("SELECT user_id FROM users WHERE role='admin'")]
    (boss,) = admin.system.query("SELECT user_id FROM users WHERE email='boss@example.com'")
    other = next(each for each in ids if each != boss["user_id"])
    await admin.go(f"/admin/users/{other}")
    await admin.page.select_option("#role", "user")
    await admin.press("#role-form button")
    await admin.go(f"/admin/users/{boss['user_id']}")
    await admin.press("#disable-form button")
    assert "last admin" in await admin.page.inner_text("[role=alert]")
    await admin.go(f"/admin/users/{other}")
    await admin.page.select_option("#role", "admin")
    await admin.press("#role-form button")
    assert "The role was changed." in await admin.text()


async def shown_well(somebody, pictures, name: str) -> None:
    """The page that is open fits every width, and everybody can use it."""
    await looking.fits(somebody, pictures, name)
    await looking.accessible(somebody)


async def submit(system, directory, name: str) -> int:
    """The gateway's answer to a message with the certificate that was downloaded."""
    context = ssl.create_default_context(cafile=str(directory / "ca.crt"))
    context.load_cert_chain(directory / f"{name}.crt", directory / f"{name}.key")
    port = system.ports()["gateway_port"]
    async with httpx.AsyncClient(verify=context, base_url=f"https://localhost:{port}") as client:
        given = {"sender_number": NUMBER, "message_body": "hello"}
        return (await client.post("/api/v1/messages", json=given)).status_code


@pytest.mark.case("TC-PT-011", "TC-PT-012")
async def test_a_certificate_is_issued_used_and_revoked(admin, tmp_path, pictures):
    """Its files are downloaded once and let messages in; revoked with a reason, they do not within a second."""
    await admin.go("/admin/certificates")
    await admin.page.fill("#client_name", "shop")
    await admin.page.fill("#domain", "shop.example")
    await admin.press("#issue button")
    assert "Download the private key now." in await admin.text()
    for name in ("shop.crt", "shop.key", "ca.crt"):
        async with admin.page.expect_download() as download:
            await admin.page.click(f'a[download="{name}"]')
        await (await download.value).save_as(tmp_path / name)
    assert await submit(admin.system, tmp_path, "shop") == 202
    await shown_well(admin, pictures, "boss-certificate-issued")
    await admin.press("text=Its page")
    assert "PRIVATE KEY" not in await admin.page.content()
    assert await admin.page.inner_text("#status") == "active"
    page = admin.path
    # One that is active already is not issued again.
    await admin.go("/admin/certificates")
    await admin.page.fill("#client_name", "shop")
    await admin.press("#issue button")
    assert await admin.page.locator("[role=alert].bad").count() == 1
    await admin.go(page)
    await admin.page.select_option("#reason", "keyCompromise")
    await admin.press("#revoke button")
    assert "The certificate is revoked." in await admin.text()
    assert "keyCompromise" in await admin.text()

    async def refused() -> bool:
        return await submit(admin.system, tmp_path, "shop") == 403

    await wait_until(refused, within=10)
    await admin.go("/admin/certificates?status=revoked&client_id=shop")
    assert len(await admin.page.locator("#list tbody tr").all()) == 1


async def test_a_request_is_signed(admin, tmp_path):
    """The key never leaves its owner: nothing is shown of one, and the certificate works with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "signed")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    pkcs8 = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "signed.key").write_bytes(key.private_bytes(*pkcs8))
    await admin.go("/admin/certificates")
    await admin.page.fill("#client_name", "signed")
    await admin.page.click("#issue summary")
    for pem, wrong in (("nothing that could be signed", 1), (request.public_bytes(Encoding.PEM).decode(), 0)):
        await admin.page.fill("#csr_pem", pem)
        await admin.press("#issue button")
        assert await admin.page.locator("#csr_pem-wrong").count() == wrong
    assert "PRIVATE KEY" not in await admin.page.content()
    assert await admin.page.locator('a[download="signed.key"]').count() == 0
    for file in ("signed.crt", "ca.crt"):
        async with admin.page.expect_download() as download:
            await admin.page.click(f'a[download="{file}"]')
        await (await download.value).save_as(tmp_path / file)
    assert await submit(admin.system, tmp_path, "signed") == 202


async def test_somebody_sees_other_clients_and_gets_a_new_password(browser, admin):
    """Both from their page: the clients hold from the next request on; a reset ends every session of theirs."""
    system = admin.system
    async with opened(system.settings) as tools:
        await browsing.account(tools.registry, "moved@example.com", "user", ["acme"])
    rows = await eventually(
        lambda: system.query("SELECT user_id FROM users WHERE email='moved@example.com'"), within=20
    )
    async with browsing.person(system, browser) as moved:
        await moved.carry(browsing.ticket(system, "moved@example.com"))
        await moved.go("/profile")
        assert "acme" in await moved.page.inner_text("main")
        await admin.go(f"/admin/users/{rows[0]['user_id']}")
        for clients, wrong in (("no-such-client", 1), ("lost, notes", 0)):
            await admin.page.fill("#clients", clients)
            await admin.press("#clients-form button")
            assert await admin.page.locator("#clients-wrong").count() == wrong
        assert "The clients were changed." in await admin.text()
        await moved.go("/profile")
        said = await moved.page.inner_text("main")
        assert ("acme" in said, "lost" in said) == (False, True)
        await admin.page.fill("#password", "a password from an admin")
        await admin.press("#password-form button")
        assert "The password was reset." in await admin.text()
        await moved.go("/messages")
        assert moved.path.startswith("/login")
        await moved.sign_in("moved@example.com", "a password from an admin")
        assert moved.path == "/messages"


async def test_a_certificate_is_renewed_with_an_overlap(admin):
    """The new one's files are shown once; the one before says until when it works."""
    await admin.go("/admin/certificates")
    await admin.page.fill("#client_name", "renewed")
    await admin.press("#issue button")
    await admin.press("text=Its page")
    old = admin.path
    await admin.press("#renew button")
    assert "The one before works until" in await admin.text()
    key = await admin.page.get_attribute('a[download="renewed.key"]', "href")
    assert base64.b64decode(key.partition(",")[2]).startswith(b"-----BEGIN PRIVATE KEY-----")
    await admin.go(old)
    assert await admin.page.inner_text("#status") == "superseded"
    assert "Replaced by" in await admin.text()


async def test_a_body_is_shown_to_who_says_why_and_it_is_recorded(admin, pictures):
    """Harmless, whatever it holds: as text, nothing of it runs. The history has who read it, and why."""
    body = f"{HOSTILE} {'Donaudampfschifffahrt' * 15} {'👩‍👩‍👧‍👦' * 15} مرحبا بالعالم"
    message_id = await register(admin.system, "notes", body=body)

    def shown() -> bool:
        return bool(admin.system.query("SELECT 1 FROM messages WHERE message_id=%s", message_id))

    await eventually(shown, within=20)
    await admin.go(f"/messages/{message_id}")
    await admin.page.fill("#decrypt-reason", "a complaint by the sender")
    await admin.press("#decrypt button")
    assert await admin.page.inner_text("#plain") == body
    assert NUMBER in await admin.text()
    assert await admin.page.evaluate("window.hurt") is None
    await shown_well(admin, pictures, "boss-message-decrypted")

    def recorded() -> list:
        return admin.system.query(
            "SELECT actor FROM audit_log WHERE type='BodyRead' AND CAST(data AS CHAR) LIKE %s",
            f"%{message_id}%complaint by the sender%",
        )

    (row,) = await eventually(recorded, within=20)
    assert row["actor"].startswith("user:")
    # Not without a reason.
    await admin.go(f"/messages/{message_id}")
    await admin.page.evaluate("document.querySelector('#decrypt').noValidate = true")
    await admin.press("#decrypt button")
    assert "reason" in await admin.page.inner_text("[role=alert]")
    assert await admin.page.locator("#plain").count() == 0


async def test_a_failed_message_is_sent_again(admin, failed):
    """From its page; the timeline says by whom, and a second cycle begins."""
    await admin.go(f"/messages/{next(failed)}")
    await admin.page.fill("#resend-reason", "the recipient is back")
    await admin.press("#resend button")
    assert "It is on its way again." in await admin.text()
    assert "the recipient is back" in await admin.page.inner_text(".timeline")
    await admin.page.wait_for_selector(".timeline >> text=cycle 2")


async def test_the_overview_is_live(admin, pictures):
    """Figures change without a click while messages come in; what it shows is what the log has."""
    await admin.go("/admin")
    first = await admin.page.inner_text("#figures")
    for name in ("Accepted a second", "Overdue retries", "Workers alive", "Redis memory", "messages"):
        assert name in first
    for name in ("Gateways alive", "Workers alive", "Servers alive", "Projectors at work"):
        assert re.search(rf"{name}\s+1\b", first), first
    await admin.page.evaluate("document.querySelector('#open').dataset.old = 'yes'")
    await admin.page.wait_for_function("() => !document.querySelector('#open').dataset.old")
    await register(admin.system, "notes")
    await admin.page.wait_for_function(
        "() => parseFloat(document.querySelector('.tile dd').innerText) > 0", timeout=20_000
    )
    if pictures:
        await looking.photograph(admin, pictures, "overview-live")


async def test_the_overview_says_when_its_reader_was_signed_out(system, anybody):
    """The stream ends with a link to the login page, and asks no more."""
    admin = await anybody.carry(browsing.ticket(system, "boss@example.com"))
    await admin.go("/admin")
    await admin.page.wait_for_function("() => document.querySelector('.tile dd').innerText !== '…'")
    other = await admin.page.context.new_page()
    await other.goto(admin.base + "/profile")
    async with other.expect_navigation():
        await other.click(".who button")
    await admin.page.wait_for_selector("text=You are signed out.", timeout=30_000)
    assert await admin.page.get_attribute("#figures a", "href") == "/login?next=%2Fadmin"


async def test_read_models_and_streams_are_shown(admin):
    """Each read model runs on its streams; each stream has its groups."""
    await admin.go("/admin/projections")
    said = await admin.text()
    for name in ("messages", "audit_log", "statistics", "users", "clients"):
        assert name in said
    assert set(await admin.page.locator("h2 .state").all_inner_texts()) == {"running"}
    await admin.go("/admin/streams")
    said = await admin.text()
    assert "control" in said
    assert "delivery" in said
    workers = [row.split("\t") for row in await admin.page.locator("#consumers tbody tr").all_inner_texts()]
    assert {stream for stream, group, *_ in workers if group == "delivery"} == {"0", "1", "2", "3"}
    assert all(pending.isdigit() and re.search(r" (ms|s|min|h)$", idle) for *_, pending, idle in workers)


async def parked(system) -> list[str]:
    """Three messages of `stuck`, whose webhook is one that nothing is sent to."""
    found = [await register(system, "stuck") for _ in range(3)]

    def waiting() -> bool:
        (row,) = system.query("SELECT COUNT(*) AS n FROM messages WHERE client_id='stuck' AND parked=1")
        return row["n"] == len(found)

    await eventually(waiting, within=30)
    return found


async def give_back(admin) -> None:
    """Give back the two of `stuck`, by what matches, after a look that does nothing."""
    await admin.go("/admin/parked?client_id=stuck")
    await admin.page.check("input[name=all]")
    await admin.press("#mend button[value=resend]")
    assert "Give back 2 messages?" in await admin.text()
    assert stuck(admin.system, "parked=1") == 2
    await admin.press("#sure button")
    assert "2 given back" in await admin.text()


def stuck(system, condition: str) -> int:
    return system.query(f"SELECT COUNT(*) AS n FROM messages WHERE client_id='stuck' AND {condition}")[0]["n"]


async def test_parked_messages_are_given_back_and_discarded(admin, pictures):
    """First how many it would be; then, said again, it is done: ticked ones, and all that match."""
    await admin.go("/admin/parked")
    assert "nothing waits for you" in await admin.text()
    messages = await parked(admin.system)
    await admin.go("/admin/parked")
    assert "the webhook's address is not https" in await admin.text()
    assert len(await admin.rows()) == 3
    await shown_well(admin, pictures, "boss-parked-rows")
    # Nothing ticked: said, and nothing done.
    await admin.press("#mend button[value=discard]")
    assert "must be ticked" in await admin.page.inner_text("[role=alert]")
    await admin.page.check(f'input[value="{messages[0]}"]')
    await admin.press("#mend button[value=discard]")
    assert "Discard 1 message?" in await admin.text()
    await shown_well(admin, pictures, "boss-parked-sure")
    await admin.page.fill("#reason", "nobody waits for it")
    await admin.press("#sure button")
    assert "1 discarded" in await admin.text()
    await shown_well(admin, pictures, "boss-parked-done")
    await admin.go(f"/messages/{messages[0]}")
    assert await admin.page.inner_text("#status") == "failed"
    assert "nobody waits for it" in await admin.page.inner_text(".timeline")
    async with opened(admin.system.settings) as tools:
        await tools.clients.change_route("stuck", "inbox", actor="system")
    while stuck(admin.system, "status='delivered'") < 2:
        # Parked again where the worker has not heard of the new route yet.
        await give_back(admin)
        await eventually(
            lambda: 2 in (stuck(admin.system, "status='delivered'"), stuck(admin.system, "parked=1")),
            within=30,
        )
