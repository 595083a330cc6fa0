"""What open pages do while the database is away: they keep what they show, say so, and go on by themselves."""

from __future__ import annotations

from urllib.parse import quote

import pytest
import pytest_asyncio

from broker.errors import LogUnavailable, StoreUnavailable
from broker.projections import address
from broker.services.portal import dashboard, faults
from broker.web.problems import Problem
from support import looking
from support.browsing import register
from support.portals import beside
from support.proxy import Proxy, proxy_to_unix
from support.system import System, eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

AWAY = "#away:text-matches('(T|t)rying again')"


class Line:
    """The line between a portal and its database, which can be cut."""

    def __init__(self, proxy: Proxy, origin: str) -> None:
        self._proxy = proxy
        self.origin = origin

    def cut(self) -> None:
        self._proxy.mode = "cut"
        self._proxy.cut()

    def mend(self) -> None:
        self._proxy.mode = "pass"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def line(system: System):
    """A second portal of the system, whose line to the database is the test's own."""
    place = address.parse(system.settings.mysql_url)
    async with proxy_to_unix(place.unix_socket) as proxy:
        who = f"{quote(place.user)}:{quote(place.password, safe='')}"
        async with beside(system, f"mysql://{who}@127.0.0.1:{proxy.port}/{place.database}") as origin:
            yield Line(proxy, origin)


@pytest_asyncio.fixture(loop_scope="session")
async def boss(profiles, line):
    """An admin at that portal."""
    line.mend()
    async with profiles("boss@example.com") as found:
        found.base = line.origin
        yield found


async def open_message(system: System) -> str:
    """One that waits for its second attempt; `acme` fails at that, four seconds after the first."""
    message_id = await register(system, "acme")

    def shown() -> bool:
        return bool(system.query("SELECT 1 FROM messages WHERE message_id=%s", message_id))

    await eventually(shown, within=20)
    return message_id


async def test_an_open_message_stays_on_its_page_and_is_followed_on(boss, line, pictures):
    """Status, body and timeline stand while nothing can be read; afterwards the outcome shows by itself."""
    found = "over"
    while found == "over":
        # On a busy machine all may be over before the page is there.
        line.mend()
        await boss.go(f"/messages/{await open_message(boss.system)}")
        line.cut()
        seen = await boss.page.wait_for_function(
            "() => document.querySelector('#live').hasAttribute('hx-get') ? "
            "/trying again/i.test(document.querySelector('#away').textContent) && 'away' : 'over'"
        )
        found = await seen.json_value()
    assert await boss.page.inner_text("#status") == "queued"
    assert await boss.page.locator(".timeline li").count() >= 1
    assert await boss.page.locator("h1").count() == 1
    await looking.fits(boss, pictures, "boss-message-away")
    await looking.accessible(boss)
    line.mend()
    await boss.page.wait_for_function("() => document.querySelector('#status').innerText === 'failed'")
    await boss.page.wait_for_selector("#away:empty", state="attached")


async def test_a_filter_is_asked_for_again(boss, line):
    """The list and the address stay as they were; what was chosen shows once it can be had."""
    await boss.go("/admin/messages")
    rows, where = len(await boss.rows()), boss.path
    line.cut()
    await boss.page.select_option("#status", "failed")
    await boss.page.wait_for_selector(AWAY)
    assert (len(await boss.rows()), boss.path) == (rows, where)
    line.mend()
    await boss.page.wait_for_url(f"{line.origin}/admin/messages?status=failed**")
    await boss.page.wait_for_selector("#away:empty", state="attached")
    assert set(await boss.page.locator("#list .state").all_inner_texts()) == {"failed"}
    # What is wrong with a filter is still said in the list's place.
    await boss.page.fill("#search", "no number")
    await boss.page.press("#search", "Enter")
    await boss.page.wait_for_selector("#list [role=alert]")


async def test_the_overview_keeps_its_figures(boss, line, system):
    """Beside them stands what is away; they move again with the database back. A stream that could not begin does."""
    await boss.go("/admin")
    line.cut()
    await boss.page.wait_for_selector("#away:has-text('The database')")
    assert await boss.page.locator("#figures .tile").count() >= 10
    line.mend()
    await boss.page.wait_for_selector("#away:empty", state="attached")
    # The first request of the stream alone fails.
    refused = []

    async def once(route) -> None:
        refused.append(await route.fulfill(status=503, body="<h1>away</h1>", content_type="text/html"))
        await boss.page.unroute("**/admin/live*")

    await boss.page.route("**/admin/live*", once)
    await boss.go("/admin")
    await boss.page.wait_for_selector(AWAY)
    assert await boss.page.locator("#figures .tile").count() >= 10
    await boss.page.wait_for_selector("#away:empty", state="attached")
    assert len(refused) == 1


FAULTS = {
    "The database is away": (StoreUnavailable("The connection was refused."), 503),
    "The log is away": (LogUnavailable("The connection was refused."), 503),
    "Too much at once": (Problem("rate_limit_exceeded", "Try again in 7 seconds."), 429),
    "Something went wrong here": (RuntimeError("secret word"), 500),
}


@pytest.mark.parametrize("title", FAULTS)
async def test_what_cannot_be_shown_is_said_by_a_page(boss, pictures, monkeypatch, title):
    """With what to do, and the number of the request; never with what went wrong inside. It fits, for everybody."""
    error, status = FAULTS[title]

    async def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(dashboard.activity, "by_hour", fails)
    assert (await boss.go("/")).status == status
    assert await boss.page.inner_text("h1") == title
    said = await boss.text()
    assert "secret word" not in said
    assert "Number of this request" in said
    assert ("tries again by itself" in said) == (status != 500)
    await looking.fits(boss, pictures, f"fault-{title.lower()}")
    await looking.accessible(boss)


async def test_a_page_that_was_away_comes_by_itself(boss, line, monkeypatch):
    """It stands still until there is something to show."""
    monkeypatch.setattr(faults, "AGAIN_SECONDS", 1)
    line.cut()
    assert (await boss.go("/admin/users")).status == 503
    line.mend()
    await boss.page.wait_for_selector("h1:text-is('Users')")


async def test_a_form_that_is_too_old_is_said_by_a_page(boss, pictures):
    """Nothing was changed, and how to go on."""
    await boss.go("/profile")
    await boss.page.fill("#current_password", "whatever it is")
    await boss.page.fill("#new_password", "another good one")
    await boss.page.evaluate(
        "document.querySelector('main form input[name=csrf]').setAttribute('value', '0'.repeat(32))"
    )
    await boss.press("main button[type=submit]")
    assert await boss.page.inner_text("h1") == "This page was too old"
    await looking.fits(boss, pictures, "fault-too-old")
    await looking.accessible(boss)


async def test_what_is_gone_is_said_to_be(boss, line):
    """A page of what one may not see any more keeps what it shows, and says that it is old."""
    await boss.go("/admin/messages")
    await boss.page.route("**/admin/messages?**", lambda route: route.fulfill(status=403, body="no"))
    await boss.page.select_option("#status", "failed")
    await boss.page.wait_for_selector("#away:has-text('not there for you')")
    assert await boss.rows()
