"""Read models built anew from the portal: what it would take, how far it is, ended, refused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pymysql
import pytest

from support import browsing, looking
from support.system import System, eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

PAGE = "/admin/projections/attempts"


async def test_a_read_model_is_rebuilt(admin, pictures):
    """First what it would take; then damaged rows are right again; who asked is on record."""
    before = admin.system.query("SELECT * FROM clients ORDER BY client_id")
    admin.system.query("UPDATE clients SET domain='damaged'")
    await admin.go("/admin/projections")
    await admin.press("text=Rebuild clients …")
    await admin.press("#estimate button")
    said = await admin.page.inner_text("#rebuild")
    assert "clients, certificates would be built anew" in said
    assert int((await admin.page.inner_text("#estimate dd >> nth=0")).replace(",", "")) > 5
    await looking.fits(admin, pictures, "boss-rebuild-estimate")
    await looking.accessible(admin)
    await admin.press("#rebuild button")
    await admin.page.wait_for_selector("text=The rebuilt tables are in place")
    assert admin.system.query("SELECT * FROM clients ORDER BY client_id") == before

    def recorded() -> bool:
        found = admin.system.query("SELECT actor FROM audit_log WHERE subject='projection:clients'")
        return len(found) == 2 and all(row["actor"].startswith("user:") for row in found)

    await eventually(recorded, within=20)
    await admin.go("/admin/projections/clients")
    assert "switched" in await admin.page.inner_text("#replays")


@contextlib.contextmanager
def held(system: System) -> Iterator[pymysql.Connection]:
    """A rebuild of `attempts` that another process is at, as the database shows it."""
    with system.mysql() as link, link.cursor() as cursor:
        cursor.execute("SELECT GET_LOCK(CONCAT('rebuild-',SHA1(CONCAT(DATABASE(),'/attempts'))),10)")
        cursor.execute(
            "INSERT INTO rebuilds (projection,stream,version,phase,incarnation,events,total,started_at,updated_at) "
            "VALUES ('attempts','0',1,'building','x',1234,5000,'2026-01-01','2026-01-01 00:01')"
        )
        try:
            yield link
        finally:
            cursor.execute("DELETE FROM rebuilds WHERE projection='attempts'")


async def test_a_rebuild_is_followed_wherever_it_runs(admin, pictures):
    """Live, with its rate; a second is refused; cancelled from here; its end shows without a click."""
    with held(admin.system) as link, link.cursor() as cursor:
        await admin.go(PAGE)
        said = await admin.page.inner_text("#progress")
        assert "1,234 of 5,000" in said.replace("\n", " ")
        assert "3.1 min" in said
        await admin.page.wait_for_load_state("load")
        cursor.execute("UPDATE rebuilds SET events=4000 WHERE projection='attempts'")
        await admin.page.wait_for_function(
            "() => document.querySelector('#events').innerText.startsWith('4,000')"
        )
        assert await admin.page.get_attribute("progress", "value") == "4000"
        cursor.execute("UPDATE rebuilds SET phase='no_archive' WHERE projection='attempts'")
        await admin.page.wait_for_selector("text=It waits for the archive, and goes on by itself.")
        assert "4,000 of 5,000" in (await admin.page.inner_text("#progress")).replace("\n", " ")
        await looking.accessible(admin)
        cursor.execute("UPDATE rebuilds SET phase='building' WHERE projection='attempts'")
        await admin.page.wait_for_selector("text=being built")
        assert await admin.page.locator("#rebuild #estimate, form[action$=rebuild]").count() == 0
        await looking.fits(admin, pictures, "boss-rebuild-running")
        await looking.accessible(admin)
        csrf = await admin.page.input_value("#cancel input[name=csrf]")
        answer = await admin.page.request.post(f"{admin.base}{PAGE}/rebuild", form={"csrf": csrf})
        assert (answer.status, "is being rebuilt" in await answer.text()) == (409, True)
        await admin.press("#cancel button")
        cursor.execute("SELECT cancelled FROM rebuilds WHERE projection='attempts'")
        assert cursor.fetchall() == [{"cancelled": 1}]
        assert "ends at its next step" in await admin.text()
        cursor.execute("DELETE FROM rebuilds WHERE projection='attempts'")
        await admin.page.wait_for_selector("text=It has ended.")
        assert not await admin.page.is_visible("#cancel")
    await admin.go(PAGE)
    answer = await admin.page.request.post(f"{admin.base}{PAGE}/cancel", form={"csrf": csrf})
    assert (answer.status, "it has ended already" in await answer.text()) == (404, True)


async def test_without_scripts(browser, system, tickets):
    """The same by plain pages: an estimate, a look that comes again by itself, an interrupted one given up."""
    context = await browser.new_context(java_script_enabled=False)
    async with browsing.somebody(system, context) as admin:
        await admin.carry(tickets("boss@example.com"))
        with held(system):
            await admin.go(PAGE)
            assert 'http-equiv="refresh"' in await admin.page.content()
            assert "1,234" in await admin.page.inner_text("#progress")
        await admin.go(PAGE)
        await admin.press("#estimate button")
        assert "Events to read" in await admin.text()
        with system.mysql() as link, link.cursor() as cursor:
            cursor.execute(
                "INSERT INTO rebuilds (projection,stream,version,phase,incarnation,events,total,started_at,updated_at) "
                "VALUES ('attempts','0',1,'building','x',7,9,NOW(),NOW())"
            )
        await admin.go(PAGE)
        assert "It was interrupted" in await admin.text()
        await admin.press("#cancel button")
        assert system.query("SELECT * FROM rebuilds") == []
        assert await admin.page.locator("#estimate").count() == 1
    await context.close()
