"""What readers and admins see of messages, in a real browser on a running system."""

from __future__ import annotations

import re

import pytest
import pytest_asyncio

from support import browsing
from support.browsing import DEMO, FAILED, LOST, NUMBER, OTHER_NUMBER, register, settled
from support.system import System, eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(scope="module", loop_scope="session", autouse=True)
async def messages(system: System) -> dict[str, list[str]]:
    """Those of `demo`, delivered, one of them with a number of its own; those of `lost`, failed."""
    return {
        "demo": await settled(system, "demo", DEMO + 1, "delivered"),
        "lost": await settled(system, "lost", LOST, "failed"),
    }


@pytest.mark.case("TC-PT-005")
async def test_a_reader_sees_the_messages_of_their_clients_alone(reader, messages):
    """In the list, on the dashboard, and by address: another client's message is not there."""
    await reader.go("/messages")
    assert "120 messages" in await reader.text()
    shown = await reader.page.locator("#list tbody code").evaluate_all("all => all.map(one => one.title)")
    assert len(shown) == 50
    assert set(shown) <= set(messages["demo"])
    assert "+49*********01" in await reader.text()
    assert NUMBER not in await reader.page.content()
    assert (await reader.go(f"/messages/{messages['demo'][0]}")).status == 200
    assert (await reader.go(f"/messages/{messages['lost'][0]}")).status == 404
    # A filter for another's client finds nothing.
    await reader.go("/messages?client_id=acme")
    assert await reader.rows() == []
    await reader.go("/")
    assert "acme" not in await reader.text()


@pytest.mark.case("TC-PT-006")
async def test_filters(profiles, messages):
    """Status, client, exact number and dates; each at once when it is chosen, and in the address."""
    async with profiles("manager@example.com") as manager:
        await manager.go("/messages")
        for status, count in (("failed", LOST), ("delivered", 50), ("queued", 0), ("all", 50)):
            async with manager.page.expect_response(lambda answer: "/messages?" in answer.url):
                await manager.page.select_option("#status", status)
            await manager.page.wait_for_url(re.compile(f"status={status}"))
            await manager.page.wait_for_function(
                "count => document.querySelectorAll('#list tbody tr').length === count", arg=count
            )
            states = set(await manager.page.locator("#list .state").all_inner_texts())
            assert status == "all" or states <= {status}
        await manager.page.fill("#search", OTHER_NUMBER)
        await manager.page.click(".filters button")
        await manager.page.wait_for_function("() => document.querySelectorAll('#list tbody tr').length === 1")
        (row,) = manager.system.query(
            "SELECT MIN(message_id) AS message_id FROM messages WHERE client_id='demo' "
            "GROUP BY sender_number_hashed HAVING COUNT(*)=1"
        )
        assert row["message_id"] in await manager.page.inner_html("#list")
        await manager.page.go_back()
        # What was shown before is asked for anew.
        await manager.page.wait_for_function(
            "() => document.querySelectorAll('#list tbody tr').length === 50"
        )
        await manager.go("/messages?from_date=2026-01-01&to_date=2026-01-02")
        assert "No message matches." in await manager.text()
        await manager.go("/messages?client_id=lost")
        assert len(await manager.rows()) == LOST


@pytest.mark.case("TC-PT-006")
async def test_the_filter_finds_what_is_queued(profiles, system):
    """A message that waits for its retry is listed under `queued`, and none of those that have failed."""
    await settled(system, "acme", FAILED, "failed")
    query = "SELECT status FROM messages WHERE message_id=%s"
    async with profiles("other@example.com") as other:
        shown: list[str] = []
        message_id = ""
        # On a busy machine its retry may be over before the list is there.
        while message_id not in shown:
            message_id = await register(system, "acme")
            await eventually(lambda message_id=message_id: system.query(query, message_id))
            await other.go("/messages")
            async with other.page.expect_response(lambda answer: "status=queued" in answer.url):
                await other.page.select_option("#status", "queued")
            await other.page.wait_for_function(
                "() => [...document.querySelectorAll('#list .state')].every(one => one.innerText === 'queued')"
            )
            shown = await other.page.locator("#list tbody code").evaluate_all(
                "all => all.map(one => one.title)"
            )
        states = await other.page.locator("#list .state").all_inner_texts()
        assert set(states) == {"queued"}


@pytest.mark.case("TC-PT-007")
async def test_pages_of_a_long_list(reader, messages):
    """Every message once, though new ones come in between; and back again."""
    seen: list[str] = []
    await reader.go("/messages")
    while True:
        seen += await reader.page.locator("#list tbody code").evaluate_all("all => all.map(one => one.title)")
        if not await reader.page.locator("a[rel=next]").count():
            break
        if len(seen) == 50:
            late = await register(reader.system, "demo")
            await settled(reader.system, "demo", len(messages["demo"]) + 1, "delivered")
        await reader.press("a[rel=next]")
    assert len(seen) == len(set(seen))
    assert set(seen) == set(messages["demo"])
    assert late not in seen
    assert "Page 3" in await reader.text()
    await reader.press("a[rel=prev]")
    assert "Page 2" in await reader.text()


@pytest.mark.case("TC-PT-008")
async def test_the_profile_shows_who_one_is(reader):
    """E-mail address, role and clients."""
    await reader.go("/profile")
    said = await reader.page.inner_text("main")
    for part in ("reader@example.com", "user", "demo"):
        assert part in said


@pytest.mark.case("TC-PT-013")
async def test_an_admin_sees_everybodys_messages(admin, messages):
    """Of all clients in one list, and each by itself, the number masked and the body not shown."""
    await admin.go("/admin/messages")
    clients = {row.split("\t")[2] for row in await admin.rows()}
    assert clients >= {"demo", "lost", "acme"}
    for message_id in (messages["demo"][0], messages["lost"][0]):
        assert (await admin.go(f"/messages/{message_id}")).status == 200
        assert "[encrypted]" in await admin.text()


async def test_a_message_tells_its_story(admin, messages):
    """Each step with who, when, code and latency: submitted, two attempts, the retry between, the outcome."""
    await admin.go(f"/messages/{messages['lost'][0]}")
    steps = await admin.page.locator(".timeline li").all_inner_texts()
    titles = [step.splitlines()[0] for step in steps]
    wanted = ["Submitted", "Attempt 1: failed", "Retry scheduled", "Due again", "Attempt 2: failed", "Failed"]
    assert len(titles) == len(wanted)
    for title, want in zip(titles, wanted, strict=True):
        assert title.startswith(want), titles
    assert "by simulated" in steps[1]
    assert re.search(r"\d+ ms", steps[1])
    assert "worker:" in steps[1]
    await admin.go(f"/messages/{messages['demo'][0]}")
    assert "certificate" in await admin.page.inner_text(".timeline li:first-child")


async def test_an_open_message_is_followed_by_its_page(profiles, system):
    """The next retry counts down, and the outcome shows without a click."""
    async with profiles("other@example.com") as other:
        counted = False
        while not counted:
            message_id = await register(system, "acme")

            def shown(message_id: str = message_id) -> bool:
                return bool(system.query("SELECT 1 FROM messages WHERE message_id=%s", message_id))

            await eventually(shown, within=20)
            await other.go(f"/messages/{message_id}")
            # On a busy machine all may be over before the page is there.
            found = await other.page.wait_for_function(
                "() => document.querySelector('#status').innerText === 'failed' ? 'over' : "
                "/^(in \\d+ s|now)$/.test(document.querySelector('#due')?.textContent ?? '') && 'counting'"
            )
            counted = await found.json_value() == "counting"
        await other.page.wait_for_function("() => document.querySelector('#status').innerText === 'failed'")
        assert await other.page.locator(".timeline li").count() == 6
        # Nothing is left to follow.
        assert await other.page.get_attribute("#live", "hx-get") is None


async def test_the_dashboard_counts_today(reader, messages):
    """The same numbers in tiles, chart and table."""
    await reader.go("/")
    tiles = dict(
        zip(
            await reader.page.locator(".tile dt").all_inner_texts(),
            await reader.page.locator(".tile dd").all_inner_texts(),
            strict=True,
        )
    )
    assert int(tiles["Delivered today"]) >= 120
    assert tiles["Failed today"] == tiles["Open now"] == "0"
    assert await reader.page.locator(".chart canvas").count() == 1
    await reader.page.click("details summary")
    last = await reader.page.inner_text("#hours tbody tr:last-child")
    assert len(await reader.page.locator("#hours tbody tr").all()) == 25
    assert last
    assert len(await reader.page.locator("main > .scroll tbody tr").all()) == 10


async def test_without_clients_the_pages_say_what_to_do(profiles):
    """An empty list is no mystery."""
    async with profiles("nobody@example.com") as nobody:
        await nobody.go("/")
        assert "An admin can give you some." in await nobody.text()
        await nobody.go("/messages")
        assert "No message yet." in await nobody.text()


async def test_pages_work_without_scripts(browser, system, messages):
    """Signing in, filtering, paging, reading one, signing out."""
    async with browsing.person(system, browser, java_script_enabled=False) as somebody:
        await somebody.signed_in("boss@example.com")
        await somebody.go("/admin/messages")
        await somebody.page.select_option("#status", "failed")
        await somebody.press(".filters button")
        assert len(await somebody.rows()) >= 2
        await somebody.press("#list tbody a")
        assert "Timeline" in await somebody.text()
        await somebody.go("/admin/messages")
        await somebody.press("a[rel=next]")
        assert "Page 2" in await somebody.text()
        await somebody.press(".who button")
        assert somebody.path == "/login?why=out"
