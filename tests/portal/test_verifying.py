"""Verifications from the portal: what they say they checked is what they checked, and what is wrong is found."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from broker import clock
from broker.events.digests import Digest, StreamDigest
from broker.events.digests_making import recorded
from broker.services.portal import pages, verifying
from broker.services.portal.verifying import Verifying
from support import looking
from support.browsing import word
from support.portals import portal
from support.waiting import wait_until

DAY_MS = 24 * 3_600_000
NOW = 1_800_000_000_000


def digest(number: int, days_ago: float) -> Digest:
    """One that some day's events were signed with."""
    at = clock.iso(NOW - round(days_ago * DAY_MS))
    state = StreamDigest("1-1", number, "0" * 64, 1, "0" * 64)
    return Digest(log_id="log", number=number, previous="0" * 64, at=at, key="0" * 64, streams={"0": state})


@pytest.mark.parametrize(
    ("ages", "days", "begin"),
    [
        ([], 1, 0),
        ([9, 3, 0.5, 0.1], 1, 2),
        ([9, 3, 0.5, 0.1], 7, 1),
        ([9, 3, 0.5, 0.1], 30, 0),
        ([9, 3, 0.5, 0.1], None, 0),
        ([9, 3], 1, 1),
    ],
)
def test_how_far_back_it_goes(monkeypatch, ages: list[float], days: int | None, begin: int) -> None:
    """After the last digest that is older, so that nothing newer is left out; the newest is checked in any case."""
    monkeypatch.setattr(clock, "now_ms", lambda: NOW)
    known = [digest(number, age) for number, age in enumerate(ages, 1)]
    assert verifying._begin(known, days) == begin


@pytest.mark.parametrize(
    ("linked", "of", "said"),
    [
        (1, 1, "7 events in the one digest and after it, from the first event on"),
        (3, 3, "7 events in all 3 digests and after them, from the first event on"),
        (2, 3, "7 events in the newest 2 of 3 digests and after them, back to 2027-01-15 08:00:00"),
        (1, 3, "7 events in the newest of 3 digests and after it, back to 2027-01-15 08:00:00"),
    ],
)
def test_it_says_how_much_was_checked(linked: int, of: int, said: str) -> None:
    """How many events of how many digests, and from when on; where there is more, how to check that."""
    now = Verifying("somebody", "week")
    now.state, now.events, now.rows, now.expected, now.digests = "right", 7, 5, 6, of
    now.since = digest(of - linked, 0) if linked < of else None
    now.until = digest(of, 0)
    text = re.sub(r"<[^>]+>", "", pages.fragment("verifying.html", now=now, live=True))
    assert f"Nothing was altered in what was checked: {said}." in text
    assert ("Events before that were not looked at" in text) == (linked < of)
    assert "of them 1 after the newest digest" in text
    assert "5; 2 had not come there yet" in text


@pytest.mark.parametrize("state", ["wrong", "failed", "cancelled"])
def test_one_that_ended_early_claims_no_more(state: str) -> None:
    """Neither that nothing was altered nor how far back it would have gone."""
    now = Verifying("somebody", "all")
    now.state, now.events, now.problem, now.digests = state, 7, "<script>", 3
    text = pages.fragment("verifying.html", now=now, live=False)
    assert "Nothing was altered" not in text
    assert "Back to" not in text
    assert "<script>" not in text
    assert "What comes after them was not looked at." in text


async def ended(auditor: Any, somebody: Any) -> str:
    """Press the button, follow it to its end without a click, and what it says then."""
    await somebody.press("#verify button")
    assert somebody.path.startswith("/audit/verifications/")
    await somebody.page.wait_for_selector("#found")
    return await somebody.page.inner_text("#found")


@pytest.mark.asyncio(loop_scope="session")
async def test_an_altered_row_is_found(auditor, pictures):
    """History and what search and event pages show are compared; everything that was checked is counted."""
    system = auditor.system
    await auditor.go("/audit")
    await auditor.page.select_option("#back", "all")
    said = await ended(auditor, auditor)
    assert "Nothing was altered in what was checked" in said.replace("\n", " ")
    assert "from the first event on" in said
    await looking.fits(auditor, pictures, "auditor-verified")
    await looking.accessible(auditor)
    # Nobody wonders what else there would have been to check.
    assert await auditor.page.locator("#older").count() == 0
    where = "stream='control' AND type='UserCreated' ORDER BY ms,seq LIMIT 1"
    (row,) = system.query(f"SELECT stream,ms,seq,actor FROM audit_log WHERE {where}")
    place = (row["stream"], row["ms"], row["seq"])
    change = "UPDATE audit_log SET actor=%s WHERE stream=%s AND ms=%s AND seq=%s"
    system.query(change, "user:somebody-else", *place)
    try:
        await auditor.go("/audit")
        said = await ended(auditor, auditor)
        assert "Something is wrong." in said
        assert f"{place[0]}:{place[1]}-{place[2]} was changed: actor" in said
        assert "What comes after them was not looked at." in await auditor.text()
        await looking.fits(auditor, pictures, "auditor-verified-wrong")
        await looking.accessible(auditor)
    finally:
        system.query(change, row["actor"], *place)


@pytest.fixture
async def slow(world, monkeypatch):
    """An auditor at a portal whose history comes once `go_on` is set."""
    go_on = asyncio.Event()

    async def late(source, **options):
        await go_on.wait()
        return await recorded(source, **options)

    monkeypatch.setattr(verifying.digests_making, "recorded", late)
    async with portal(world, "mysql://nobody@127.0.0.1:1/none", role="auditor") as client:
        await client.sign_in()
        client.go_on = go_on
        yield client
        go_on.set()


async def begin(client: Any) -> Any:
    """Begin one; the answer."""
    csrf = word((await client.get("/profile")).text)
    return await client.post("/audit/verify", data={"csrf": csrf, "back": "day"})


async def test_it_can_be_cancelled_and_only_so_many_run(slow):
    """Each has a page of its own that says how far it is; one more than there may be is told to wait."""
    answers = [await begin(slow) for _ in range(verifying.MOST_AT_ONCE)]
    page = answers[0].headers["location"]
    assert "being checked" in (await slow.get(page)).text
    refused = await begin(slow)
    assert (refused.status_code, "Too many verifications" in refused.text) == (503, True)
    csrf = word((await slow.get(page)).text)
    assert (await slow.post(f"{page}/cancel", data={"csrf": csrf})).headers["location"] == page
    assert "It was cancelled." in (await slow.get(page)).text
    assert (await begin(slow)).status_code == 303


async def test_without_the_database_it_says_that_it_could_not_be_finished(slow):
    """What could not be compared is not called right."""
    page = (await begin(slow)).headers["location"]
    slow.go_on.set()

    async def failed() -> bool:
        return "It could not be finished." in (await slow.get(page)).text

    await wait_until(failed)
    said = (await slow.get(page)).text
    assert "Nothing was altered" not in said
    assert "event: ended" in (await slow.get(f"{page}/live?live=1")).text
