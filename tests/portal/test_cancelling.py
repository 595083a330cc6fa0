"""A rebuild that really runs, followed and cancelled from its page while it is under way."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from broker.projections.rebuild import background
from broker.projections.rebuild.sources import LogSource
from broker.services.portal.admin import projections
from support.portals import beside
from support.system import System
from support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="session")

PAGE = "/admin/projections/attempts"
PIECE = 5


class Turnstile(LogSource):
    """A history that comes in small pieces, each when it is let through."""

    passes = asyncio.Semaphore(0)

    async def blocks(self, stream, after):
        async with aclosing(super().blocks(stream, after)) as blocks:
            async for block in blocks:
                for at in range(0, len(block), PIECE):
                    await self.passes.acquire()
                    yield block[at : at + PIECE]


def tables(system: System) -> list[str]:
    """The names of all there are."""
    return [next(iter(row.values())) for row in system.query("SHOW TABLES")]


def rows(system: System) -> set[tuple]:
    """Which attempts the present table has."""
    found = system.query("SELECT message_id,cycle,attempt FROM attempts")
    return {tuple(row.values()) for row in found}


async def test_a_running_rebuild_is_cancelled(profiles, system, monkeypatch):
    """Its progress is live; once it is cancelled the present tables serve on, and nothing of it is left."""
    before = tables(system), rows(system)
    passes = asyncio.Semaphore(10_000)
    monkeypatch.setattr(Turnstile, "passes", passes)
    monkeypatch.setattr(projections, "LogSource", Turnstile)
    # Committed piece by piece, as a history that is a thousand times as long.
    monkeypatch.setattr(background, "BATCH", PIECE)
    async with beside(system, system.settings.mysql_url) as origin, profiles("boss@example.com") as admin:
        admin.base = origin
        await admin.go(PAGE)
        await admin.press("#estimate button")
        while not passes.locked():
            await passes.acquire()
        await admin.press("#rebuild form[action$=rebuild] button")
        await admin.page.wait_for_selector("#progress progress")
        seen = 0
        for _ in range(2):
            for _ in range(10):
                passes.release()
            grown = (
                "seen => Number(document.querySelector('#progress progress')?.getAttribute('value')) > seen"
            )
            await admin.page.wait_for_function(grown, arg=seen)
            seen = int(await admin.page.get_attribute("#progress progress", "value"))
        assert set(tables(system)) > set(before[0])
        await admin.press("#cancel button")
        assert "ends at its next step" in await admin.text()
        for _ in range(10_000):
            passes.release()

        async def told() -> bool:
            await admin.go(PAGE)
            said = await admin.page.inner_text("#rebuild")
            # Loaded before its end was on record, the page says so in its live part, and offers no other yet.
            return "was cancelled." in said and await admin.page.locator("#estimate").count() == 1

        await wait_until(told, within=30)
        assert system.query("SELECT 1 FROM rebuilds") == []
    # Messages that others sent may have gone on meanwhile.
    assert tables(system) == before[0]
    assert rows(system) >= before[1]
