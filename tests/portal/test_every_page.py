"""Every page: for everybody who uses it, on every width, in light and dark, and whatever it shows."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from support import browsing, looking
from support.system import System, eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

OPEN = ("/login", "/login?why=expired", "/nothing-here")
READER = ("/", "/messages", "/messages?search=wrong", "/profile", "/admin", "/logout")
ADMIN = ("/", "/admin", "/admin/messages", "/admin/messages?status=failed", "/admin/parked", "/admin/users",
         "/admin/users?search=nobody-at-all", "/admin/clients", "/admin/clients?search=nobody-at-all",
         "/admin/clients/demo", "/admin/certificates", "/admin/certificates?status=revoked",
         "/admin/projections",
         "/admin/projections/messages", "/admin/streams", "/audit", "/audit?type=UserCreated")  # fmt: skip


@pytest.fixture(scope="module")
def pages(system: System, failed: Iterator[str]) -> dict[str, tuple[str, ...]]:
    """The addresses of all pages by who looks at them, those of single things among them."""
    message = next(failed)
    (person,) = system.query("SELECT user_id FROM users WHERE email='reader@example.com'")
    (held,) = system.query("SELECT fingerprint FROM certificates WHERE client_id='demo' LIMIT 1")
    (event,) = system.query("SELECT stream,ms,seq FROM audit_log WHERE subject=%s LIMIT 1", message)
    single = (
        f"/messages/{message}",
        f"/admin/users/{person['user_id']}",
        f"/admin/certificates/{held['fingerprint']}",
        f"/audit/{event['stream']}:{event['ms']}-{event['seq']}",
    )
    return {"": OPEN, "reader@example.com": READER, "boss@example.com": (*ADMIN, *single)}


@pytest.mark.case("TC-PT-015")
@pytest.mark.parametrize("email", ["", "reader@example.com", "boss@example.com"])
async def test_pages_fit_every_width_and_are_accessible(profiles, pages, album, email):
    """Nothing is cut off or runs over the side; what is wide scrolls inside its frame; all can be reached.

    Axe finds nothing serious or critical, in either colour scheme.
    """
    async with profiles(email) as somebody:
        for path in pages[email]:
            await somebody.page.set_viewport_size({"width": looking.WIDTHS[0], "height": 800})
            await somebody.go(path)
            assert await somebody.page.locator("h1").first.is_visible(), path
            await looking.fits(somebody, album, f"{email.partition('@')[0]}{path}")
            await looking.accessible(somebody)


# Whether the list has such cells, and all of them say the same.
ALL = """([cells, said]) => {
  const found = [...document.querySelectorAll(`#list ${cells}`)].map((each) => each.innerText);
  return found.length > 0 && found.every((each) => each === said);
}"""


async def reach(somebody: browsing.Person, selector: str) -> None:
    """Press Tab until this has the focus, which is seen there."""
    for _ in range(100):
        await somebody.page.keyboard.press("Tab")
        if await somebody.page.evaluate("wanted => document.activeElement.matches(wanted)", selector):
            style = await somebody.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert style != "none", selector
            return
    raise AssertionError(f"{selector} cannot be reached")


async def test_pages_are_used_by_keyboard(browser, system, failed):
    """The first stop skips to the content; signing in, going, filtering and opening need no mouse; focus is seen."""
    async with browsing.person(system, browser) as somebody:
        keyboard = somebody.page.keyboard
        await somebody.go("/login")
        await keyboard.type("boss@example.com")
        await keyboard.press("Tab")
        await keyboard.type(browsing.PASSWORD)
        async with somebody.page.expect_navigation():
            await keyboard.press("Enter")
        await keyboard.press("Tab")
        assert await somebody.page.evaluate("document.activeElement.className") == "skip"
        await keyboard.press("Enter")
        assert await somebody.page.evaluate("document.activeElement.id") == "content"
        await somebody.go("/")
        await reach(somebody, 'nav a[href="/admin/messages"]')
        async with somebody.page.expect_navigation():
            await keyboard.press("Enter")
        # The filter holds as soon as it is chosen; the focus stays in the form.
        await reach(somebody, "#status")
        await keyboard.type("failed")
        await somebody.page.wait_for_url("**status=failed**")
        await somebody.page.wait_for_function(ALL, arg=[".state", "failed"])
        await reach(somebody, "#client_id")
        await keyboard.type("acme")
        await keyboard.press("Enter")
        await somebody.page.wait_for_url("**client_id=acme**")
        await somebody.page.wait_for_function(ALL, arg=["tbody td:nth-child(3)", "acme"])
        await reach(somebody, "#list tbody a")
        wanted = await somebody.page.evaluate("document.activeElement.getAttribute('href')")
        async with somebody.page.expect_navigation():
            await keyboard.press("Enter")
        assert somebody.path == wanted
        assert "Timeline" in await somebody.text()
        # What is wide is scrolled, and what folds is unfolded, by keys too.
        await somebody.go("/")
        await reach(somebody, "details summary")
        await keyboard.press("Enter")
        assert await somebody.page.is_visible("#hours")


async def test_hostile_contents_are_harmless(profiles):
    """Markup, template code and scripts in addresses, filters and names are shown as text; nothing runs."""
    hostile = '"><script>window.hurt=1</script>{{98765*43210}}'
    async with profiles("boss@example.com") as somebody:
        for path in ("/admin/messages?search=", "/admin/messages?client_id=", "/admin/users?search=",
                     "/admin/parked?parked_reason=", "/audit?actor=", "/audit?subject=", "/admin/messages?",
                     "/messages/", "/", "/admin/users/", "/audit/"):  # fmt: skip
            await somebody.page.goto(somebody.base + path + hostile.replace("/", "%2F"))
            assert await somebody.page.evaluate("window.hurt") is None, path
            assert "4267635650" not in await somebody.page.inner_text("main"), path


async def test_auditors_search_the_history(auditor):
    """By type, actor, subject and day; one event shows its data and its place in the chain."""
    await auditor.go("/")
    assert auditor.path == "/audit"
    await auditor.page.select_option("#type", "UserCreated")
    await auditor.press(".filters button")
    found = await auditor.page.locator("#list tbody tr").all_inner_texts()
    assert len(found) >= len(browsing.PEOPLE)
    assert all("UserCreated" in row for row in found)
    await auditor.press("#list tbody tr >> nth=0 >> a >> nth=0")
    assert await auditor.page.inner_text("h1") == "UserCreated"
    position = auditor.path.removeprefix("/audit/")
    assert position in await auditor.text()
    stream, _, entry = position.partition(":")
    ms, _, seq = entry.partition("-")
    (row,) = auditor.system.query(
        "SELECT LOWER(HEX(hash)) AS h FROM audit_log WHERE stream=%s AND ms=%s AND seq=%s", stream, ms, seq
    )
    assert await auditor.page.inner_text("#hash") == row["h"]
    # No password and no hash of one.
    assert "$2b$" not in await auditor.page.content()
    await auditor.go("/audit?from_date=2020-01-01&to_date=2020-01-02")
    assert "No event matches." in await auditor.text()
    assert (await auditor.go("/audit?type=Nothing")).status == 400
    for path in ("/audit/0:1-1", "/audit/nonsense", "/audit/0:x-y"):
        assert (await auditor.go(path)).status == 404


async def test_auditors_export_and_verify(auditor, tmp_path, pictures):
    """A file of what was searched for, one event with its proof, and what a verification has checked."""
    await auditor.go("/audit?type=UserCreated")
    await auditor.press("#export button")
    assert "UserCreated" in await auditor.page.inner_text("dl")
    await looking.fits(auditor, pictures, "auditor-export")
    await looking.accessible(auditor)
    async with auditor.page.expect_download() as download:
        await auditor.page.click("#fetch")
    await (await download.value).save_as(tmp_path / "history.jsonl")
    await auditor.page.wait_for_selector("text=The file is whole")
    assert not await auditor.page.is_visible("#cancel")
    async with auditor.page.expect_download() as download:
        await auditor.page.click("#digests")
    await (await download.value).save_as(tmp_path / "history.jsonl.digests.jsonl")
    done = auditor.system.run("events", "verify", str(tmp_path / "history.jsonl"), "--filtered")
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "history.jsonl").read_text()
    assert text.count('"UserCreated"') >= len(browsing.PEOPLE)
    assert "$2b$" not in text
    await auditor.press("text=← History")
    await auditor.press("#list tbody tr >> nth=-1 >> a >> nth=0")
    async with auditor.page.expect_download() as download:
        await auditor.page.click("text=Download with its proof")
    await (await download.value).save_as(tmp_path / "event.json")
    assert json.loads((tmp_path / "event.json").read_text())["type"] == "UserCreated"
    await auditor.go("/audit")
    await auditor.press("#verify button")
    assert "Nothing was altered" in await auditor.page.inner_text("#found")
    assert int(await auditor.page.inner_text("dd >> nth=0")) >= 1

    def recorded() -> list:
        return auditor.system.query("SELECT 1 FROM audit_log WHERE type='HistoryExported'")

    await eventually(recorded, within=20)


async def test_an_export_is_of_all_that_was_asked_for(auditor, tmp_path):
    """Of one conversation, as the search showed it: no event more, none less."""
    (row,) = auditor.system.query(
        "SELECT correlation_id FROM audit_log WHERE type='LoginSucceeded' AND correlation_id IS NOT NULL LIMIT 1"
    )
    await auditor.go(f"/audit?correlation_id={row['correlation_id']}")
    shown = await auditor.page.locator("#list tbody td:last-child").all_inner_texts()
    await auditor.press("#export button")
    assert row["correlation_id"] in await auditor.page.inner_text("dl")
    async with auditor.page.expect_download() as download:
        await auditor.page.click("#fetch")
    await (await download.value).save_as(tmp_path / "history.jsonl")
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert {json.loads(line)["id"] for line in lines} == set(shown)


async def test_readers_do_not_search_the_history(reader):
    """It is for auditors and admins."""
    assert (await reader.go("/audit")).status == 403
    assert (await reader.go("/audit/0:1-1")).status == 403
