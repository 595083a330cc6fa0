"""Signing in and out in a real browser, and what a session allows."""

from __future__ import annotations

import re

import msgspec
import pytest

from broker import clock
from broker.events.keyring import Keyring
from broker.services.portal.tickets import Tickets
from support import browsing, looking
from support.browsing import PASSWORD, word
from support.system import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


def tickets(system) -> Tickets:
    return Tickets(Keyring.load(system.settings.keyring_path), secure=False)


async def cookie(person) -> dict:
    (found,) = [each for each in await person.page.context.cookies() if each["name"] == "broker"]
    return found


async def put(person, value: str) -> None:
    """Give the browser this ticket in place of its own."""
    await person.page.context.add_cookies([await cookie(person) | {"value": value}])


@pytest.mark.case("TC-PT-001")
async def test_signing_in_leads_to_the_dashboard(anybody):
    """The right password opens the dashboard, which says who is signed in."""
    await anybody.go("/")
    assert anybody.path == "/login"
    await anybody.sign_in("reader@example.com")
    assert anybody.path == "/"
    assert await anybody.page.inner_text("h1") == "Dashboard"
    assert "reader@example.com" in await anybody.text()


@pytest.mark.case("TC-PT-002")
@pytest.mark.parametrize(
    ("email", "password"), [("reader@example.com", "wrong"), ("no.such.person@example.com", PASSWORD)]
)
async def test_a_wrong_password_is_said(anybody, email, password):
    """The page says that it did not work, the same whoever has an account, and keeps the e-mail address."""
    await anybody.go("/login")
    await anybody.sign_in(email, password)
    assert anybody.path == "/login"
    assert await anybody.page.inner_text("[role=alert]") == "E-mail address or password is wrong."
    assert await anybody.page.input_value("#email") == email
    assert await anybody.page.input_value("#password") == ""
    await anybody.go("/messages")
    assert anybody.path.startswith("/login")


@pytest.mark.case("TC-PT-003", "TC-I-009")
async def test_a_session_lasts_from_signing_in_to_signing_out(anybody):
    """It holds over requests; signing out ends it here and for whoever copied the cookie."""
    await anybody.signed_in("reader@example.com")
    for path in ("/messages", "/profile", "/", "/messages"):
        assert (await anybody.go(path)).status == 200
        assert anybody.path == path
    copied = (await cookie(anybody))["value"]
    await anybody.press(".who button")
    assert anybody.path == "/login?why=out"
    assert "You are signed out." in await anybody.text()
    await anybody.go("/messages")
    assert anybody.path == "/login?next=%2Fmessages"
    await put(anybody, copied)
    await anybody.go("/messages")
    assert anybody.path == "/login?next=%2Fmessages&why=ended"


@pytest.mark.case("TC-PT-004")
async def test_an_expired_session_leads_to_signing_in_and_back(anybody):
    """After `portal_session` without a request the login page says why, and leads on to where one was."""
    system = anybody.system
    await anybody.carry(browsing.ticket(system, "reader@example.com"))
    ours = tickets(system)
    now = ours.read({"broker": (await cookie(anybody))["value"]})
    passed = round(system.settings.portal_session * 1000) + 1
    late = msgspec.structs.replace(now, seen_ms=clock.now_ms() - passed)
    aged = ours.header(late).decode().partition(";")[0].removeprefix("broker=")
    await put(anybody, aged)
    await anybody.go("/messages?status=failed")
    assert anybody.path.startswith("/login?")
    assert "nothing happened for a while" in await anybody.text()
    await anybody.sign_in("reader@example.com")
    assert anybody.path == "/messages?status=failed"
    # The old session is over in Redis, too: no cookie brings it back.
    await put(anybody, ours.header(now).decode().partition(";")[0].removeprefix("broker="))
    await anybody.go("/messages")
    assert anybody.path.endswith("why=ended")


async def test_using_the_portal_keeps_a_session(anybody):
    """A request late in the session's time gives it all of its time again."""
    await anybody.carry(browsing.ticket(anybody.system, "reader@example.com"))
    ours = tickets(anybody.system)
    now = ours.read({"broker": (await cookie(anybody))["value"]})
    late = msgspec.structs.replace(now, seen_ms=now.seen_ms - 1_500_000)
    await put(anybody, ours.header(late).decode().partition(";")[0].removeprefix("broker="))
    assert (await anybody.go("/messages")).status == 200
    renewed = ours.read({"broker": (await cookie(anybody))["value"]})
    assert renewed.seen_ms >= now.seen_ms
    assert renewed.session_id == now.session_id


@pytest.mark.case("TC-S-013")
async def test_the_session_cookie_is_encrypted_and_out_of_scripts_reach(anybody):
    """It is HttpOnly and SameSite, holds nothing readable, and one changed character makes it worthless."""
    reader = await anybody.signed_in("reader@example.com")
    found = await cookie(reader)
    assert found["httpOnly"]
    assert found["sameSite"] == "Lax"
    assert found["expires"] == -1
    ticket = tickets(reader.system).read({"broker": found["value"]})
    assert ticket.session_id
    for secret in (ticket.session_id, ticket.csrf, "reader@example.com"):
        assert secret not in found["value"]
        assert bytes.fromhex(ticket.session_id) not in found["value"].encode()
    assert await reader.page.evaluate("document.cookie") == ""
    again = await reader.go("/messages")
    assert again.status == 200
    middle = len(found["value"]) // 2
    other = "A" if found["value"][middle] != "A" else "B"
    await put(reader, found["value"][:middle] + other + found["value"][middle + 1 :])
    await reader.go("/messages")
    assert reader.path.startswith("/login")


@pytest.mark.case("TC-PT-014")
@pytest.mark.parametrize("email", ["reader@example.com", "auditor@example.com"])
async def test_pages_of_another_role_are_refused(profiles, email):
    """A page that says so, with the status 403 and the person's own navigation."""
    async with profiles(email) as somebody:
        answer = await somebody.go("/admin/messages")
        assert answer.status == 403
        assert "Not for you" in await somebody.text()
        assert email in await somebody.text()


async def test_guessing_is_held_up(browser, system, pictures):
    """After `login_attempts` wrong passwords the right one waits too, and the page says for how long."""
    email = "guessed@example.com"
    with browsing.visiting(system) as http:
        given = {"email": email, "password": "wrong", "csrf": word(http.get("/login").text), "next": "/"}
        for _ in range(system.settings.login_attempts):
            assert http.post("/login", data=given).status_code == 401
    async with browsing.person(system, browser) as somebody:
        await somebody.go("/login")
        await somebody.sign_in(email)
        said = await somebody.page.inner_text("[role=alert]")
        assert re.fullmatch(r"Too many attempts\. Try again in [\d.]+ (s|min)\.", said)
        await looking.fits(somebody, pictures, "login-throttled")
        await looking.accessible(somebody)


async def test_logins_are_on_record(anybody):
    """Who signed in and out is in the history, as it is for the API."""
    await anybody.signed_in("other@example.com")
    await anybody.press(".who button")
    (person,) = anybody.system.query("SELECT user_id FROM users WHERE email='other@example.com'")

    def recorded() -> bool:
        rows = anybody.system.query(
            "SELECT type FROM audit_log WHERE subject=%s ORDER BY ms,seq", f"user:{person['user_id']}"
        )
        return [row["type"] for row in rows][-2:] == ["LoginSucceeded", "LoggedOut"]

    await eventually(recorded, within=20)


async def test_a_password_is_changed(browser, system):
    """The profile does it; the wrong current one is said beside its field; other sessions end."""
    async with browsing.person(system, browser) as one, browsing.person(system, browser) as two:
        await one.carry(browsing.ticket(system, "changing@example.com"))
        await two.carry(browsing.ticket(system, "changing@example.com"))
        assert (await two.go("/messages")).status == 200
        await one.go("/profile")
        for current, new in (("wrong one", "another good one"), (PASSWORD, "short")):
            await one.page.evaluate("document.querySelector('main form').noValidate = true")
            await one.page.fill("#current_password", current)
            await one.page.fill("#new_password", new)
            await one.press("main button[type=submit]")
            assert await one.page.locator("small.wrong").count() == 1
        await one.page.fill("#current_password", PASSWORD)
        await one.page.fill("#new_password", "another good one")
        await one.press("main button[type=submit]")
        assert "Your password was changed." in await one.text()
        assert (await one.go("/messages")).status == 200
        await two.go("/messages")
        assert two.path.startswith("/login")
