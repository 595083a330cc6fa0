"""A dozen people at once, each with a browser of their own."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from support import browsing
from support.browsing import Person

pytestmark = pytest.mark.asyncio(loop_scope="session")

READER = ("/", "/messages", "/messages?status=delivered", "/profile")
ADMIN = ("/", "/admin", "/admin/messages", "/admin/clients", "/admin/projections", "/admin/streams")
AUDITOR = ("/audit", "/audit?type=UserCreated")
TOGETHER = {
    "reader@example.com": (4, READER),
    "other@example.com": (4, READER),
    "boss@example.com": (2, ADMIN),
    "auditor@example.com": (2, AUDITOR),
}


async def look_around(somebody: Person, email: str, paths: tuple[str, ...]) -> set[str]:
    """Open page after page; whose messages the lists showed."""
    seen: set[str] = set()
    for path in paths:
        answer = await somebody.go(path)
        assert (answer.status, email in await somebody.text()) == (200, True), path
        if path.startswith("/messages"):
            links = somebody.page.locator('#list tbody a[href^="/messages/"]')
            seen |= {
                (await each.get_attribute("href") or "").rpartition("/")[2] for each in await links.all()
            }
    return seen


@pytest.mark.case("TC-L-010")
async def test_a_dozen_browsers_at_once(system, browser):
    """Every page is answered, to each with what is theirs; no browser complains of anything."""
    crowd = [(email, paths) for email, (count, paths) in TOGETHER.items() for _ in range(count)]
    assert len(crowd) == 12
    async with AsyncExitStack() as stack:
        there = [await stack.enter_async_context(browsing.person(system, browser)) for _ in crowd]
        for one, (email, _) in zip(there, crowd, strict=True):
            await one.signed_in(email)
        shown = await asyncio.gather(
            *(look_around(one, email, paths) for one, (email, paths) in zip(there, crowd, strict=True))
        )
    mine = dict.fromkeys(TOGETHER, frozenset[str]())
    for (email, _), seen in zip(crowd, shown, strict=True):
        mine[email] |= seen
    for email, client in (("reader@example.com", "demo"), ("other@example.com", "acme")):
        rows = system.query("SELECT message_id FROM messages WHERE client_id=%s", client)
        assert mine[email], email
        assert mine[email] <= {row["message_id"] for row in rows}, email
