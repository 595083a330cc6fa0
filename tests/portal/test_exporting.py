"""Exports from the portal while they are under way: followed, ended, broken off, fetched once, one's own alone."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from broker.events import exported_serving
from broker.events.exported_walk import HistoryAltered
from broker.services.portal import jobs
from support import browsing
from support.browsing import PASSWORD, word
from support.portals import portal
from support.waiting import wait_until

NO_TABLES = "mysql://nobody@127.0.0.1:1/none"


class Slow:
    """In place of the lines of an export: a first piece, the rest once `go_on` is set, `error` in between."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.error: Exception | None = None

    async def lines(self, begun, form, after=None):
        pieces = [piece async for piece in self.all(begun, form, after)]
        yield b"".join(pieces[:1]) or b"\n"
        await self.go_on.wait()
        if self.error:
            raise self.error
        for piece in pieces[1:]:
            yield piece

    all = staticmethod(exported_serving.lines)


@pytest.fixture
def slow(monkeypatch) -> Slow:
    made = Slow()
    monkeypatch.setattr(exported_serving, "lines", made.lines)
    return made


@pytest.fixture
async def auditor(world):
    async with portal(world, NO_TABLES, role="auditor") as client:
        await client.sign_in()
        yield client


async def begin(visitor, form: str = "jsonl") -> str:
    """Begin an export; its page."""
    csrf = word((await visitor.get("/profile")).text)
    answer = await visitor.post("/audit/export", data={"csrf": csrf, "format": form, "type": "UserCreated"})
    assert answer.status_code == 303, answer.text
    return answer.headers["location"]


async def says(visitor, page: str, text: str) -> None:
    """Wait until the page says so."""

    async def said() -> bool:
        return text in (await visitor.get(page)).text

    await wait_until(said)


async def test_an_export_is_followed_to_its_end(auditor, slow):
    """Its page says how far it is, live too; the file is whole, and given out once."""
    page = await begin(auditor)
    before = (await auditor.get(page)).text
    assert "ready to be fetched" in before
    assert f'href="{page}/file"' in before
    assert (await auditor.head(f"{page}/file")).status_code == 200
    live: list[str] = []
    async with (
        auditor.stream("GET", f"{page}/live?live=1") as events,
        auditor.stream("GET", f"{page}/file") as file,
    ):
        assert file.headers["content-disposition"].endswith('.jsonl"')
        await says(auditor, page, "being sent")
        assert f'href="{page}/file"' not in (await auditor.get(page)).text
        assert 'http-equiv="refresh"' in (await auditor.get(page)).text
        slow.go_on.set()
        content = await file.aread()
        live += [line async for line in events.aiter_lines()]
    assert content.count(b'"UserCreated"') == 1
    assert "The file is whole" in "\n".join(live)
    assert live[-3:-1] == ["event: ended", "data: -"]
    assert "The file is whole" in (await auditor.get(page)).text
    again = await auditor.get(f"{page}/file")
    assert (again.status_code, "fetched already" in again.text) == (409, True)


async def test_a_cancelled_export_is_no_whole_file(auditor, slow):
    """The connection breaks off, so that nobody takes what came for the file."""
    page = await begin(auditor)
    csrf = word((await auditor.get(page)).text)
    async with auditor.stream("GET", f"{page}/file") as file:
        await says(auditor, page, "being sent")
        answer = await auditor.post(f"{page}/cancel", data={"csrf": csrf})
        assert answer.headers["location"] == page
        slow.go_on.set()
        with pytest.raises(httpx.RemoteProtocolError):
            await file.aread()
    assert "It was cancelled." in (await auditor.get(page)).text
    assert (await auditor.get(f"{page}/file")).status_code == 409


async def test_a_history_that_was_altered_is_said(auditor, slow):
    """The file breaks off, and the page has the reason."""
    page = await begin(auditor)
    slow.error = HistoryAltered("Digest 1 vouches for something else.")
    slow.go_on.set()
    with pytest.raises(httpx.RemoteProtocolError):
        await auditor.get(f"{page}/file")
    said = (await auditor.get(page)).text
    assert "It failed" in said
    assert "Digest 1 vouches for something else." in said


async def test_a_browser_that_goes_away_is_noticed(auditor, slow):
    """The export has broken off; nothing goes on for nobody."""
    page = await begin(auditor)
    async with auditor.stream("GET", f"{page}/file"):
        await says(auditor, page, "being sent")
    await says(auditor, page, "It broke off")


async def test_an_export_is_its_owners_alone(world, auditor, slow):
    """Another auditor, who even knows the address, finds nothing; nor does anybody end it for them."""
    await browsing.account(world.registry, "b@example.com", "auditor")
    page = await begin(auditor)
    async with httpx.AsyncClient(base_url=auditor.base_url, timeout=30) as other:
        csrf = word((await other.get("/login")).text)
        given = {"email": "b@example.com", "password": PASSWORD, "csrf": csrf, "next": "/"}
        assert (await other.post("/login", data=given)).status_code == 303
        csrf = word((await other.get("/profile")).text)
        for path in (page, f"{page}/file", f"{page}/live"):
            assert (await other.get(path)).status_code == 404, path
        assert (await other.post(f"{page}/cancel", data={"csrf": csrf})).status_code == 404
    assert "ready to be fetched" in (await auditor.get(page)).text


async def test_exports_are_remembered_within_bounds(auditor, slow, monkeypatch):
    """Those that ended make room; while none has, another is a 503."""
    monkeypatch.setattr(jobs, "MOST", 2)
    first, second = await begin(auditor), await begin(auditor)
    csrf = word((await auditor.get("/profile")).text)
    answer = await auditor.post("/audit/export", data={"csrf": csrf, "format": "csv"})
    assert (answer.status_code, "Too many exports" in answer.text) == (503, True)
    await auditor.post(f"{first}/cancel", data={"csrf": csrf})
    await begin(auditor, "csv")
    assert (await auditor.get(first)).status_code == 404
    assert (await auditor.get(second)).status_code == 200
