"""People at the portal, each from an address of their own: signing in, then clicking from page to page.

A page's time counts from when the click was due, as a request's does in `offering`.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from support.browsing import PASSWORD, word
from support.load.offering import latencies
from support.system import System

PAGES = {
    "user": {
        "dashboard": "/",
        "messages": "/messages",
        "messages, delivered": "/messages?status=delivered",
        "messages, failed": "/messages?status=failed",
        "profile": "/profile",
    },
    "admin": {
        "dashboard": "/",
        "overview": "/admin",
        "all messages": "/admin/messages",
        "all messages, failed": "/admin/messages?status=failed",
        "users": "/admin/users",
        "clients": "/admin/clients",
        "certificates": "/admin/certificates",
        "parked messages": "/admin/parked",
        "projections": "/admin/projections",
        "streams": "/admin/streams",
    },
    "auditor": {
        "history": "/audit",
        "history, one type": "/audit?type=MessageSubmitted",
        "history, one actor": "/audit?actor=system",
        "profile": "/profile",
    },
}
"""What each role looks at, by name."""
_MESSAGE = re.compile(r'href="/messages/([0-9a-f-]{36})"')
_EVENT = re.compile(r'href="(/audit/[0-9a-z]+:\d+-\d+)"')


@dataclass(frozen=True)
class Account:
    """Who clicks. `foreign`: a message of somebody else, which a reader tries to see."""

    email: str
    role: str
    foreign: str = ""


@dataclass(frozen=True)
class Click:
    """One page, from the click to its last byte; `good`: it was the page asked for. `status` 0: no answer."""

    page: str
    seconds: float
    status: int
    good: bool


@dataclass
class Clicked:
    """What became of all their clicks."""

    people: int
    seconds: float
    clicks: list[Click] = field(default_factory=list)

    @property
    def success_rate(self) -> float:
        return sum(click.good for click in self.clicks) / len(self.clicks)

    def figures(self) -> dict[str, Any]:
        """For the report, in all and by page; milliseconds."""
        names = sorted({click.page for click in self.clicks})
        pages = {name: _figures([click for click in self.clicks if click.page == name]) for name in names}
        return {"people": self.people, "seconds": self.seconds, **_figures(self.clicks), "pages": pages}


def _figures(clicks: Sequence[Click]) -> dict[str, Any]:
    return {
        "requests": len(clicks),
        "success_rate": sum(click.good for click in clicks) / len(clicks),
        **latencies([click.seconds for click in clicks]),
    }


class Person:
    """Somebody at the portal; `shown`: the messages that any page named to them."""

    def __init__(self, client: httpx.AsyncClient, account: Account, pause: float, clicked: Clicked) -> None:
        self.account = account
        self.shown: set[str] = set()
        self._client = client
        self._pause = pause
        self._clicked = clicked
        self._random = random.Random(account.email)

    async def use(self, seconds: float) -> None:
        """Sign in; every page of the role once, however long it takes, then any of them while time is left."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        csrf = word(await self._click("login page", "/login"))
        given = {"email": self.account.email, "password": PASSWORD, "csrf": csrf, "next": "/profile"}
        await self._click("signing in", "/login", given, status=303)
        names = list(PAGES[self.account.role])
        for name in names:
            await self._look(name)
        while loop.time() < ends:
            await self._look(self._random.choice(names))

    async def _look(self, name: str) -> None:
        """A page; from the lists something that they list, and what is not for one's eyes."""
        text = await self._click(name, PAGES[self.account.role][name])
        assert not text or self.account.email in text, f"{name} is somebody else's"
        messages = _MESSAGE.findall(text)
        self.shown |= set(messages)
        if name in {"messages", "all messages"} and messages:
            await self._click("one message", f"/messages/{self._random.choice(messages)}")
        if name == "history" and (events := _EVENT.findall(text)):
            await self._click("one event", self._random.choice(events))
        if name == "messages" and self.account.foreign:
            await self._click("another's message", f"/messages/{self.account.foreign}", status=404)

    async def _click(
        self, name: str, path: str, given: dict[str, str] | None = None, *, status: int = 200
    ) -> str:
        """After a pause; the page, or nothing where it could not be had."""
        loop = asyncio.get_running_loop()
        pause = self._random.uniform(0, 2 * self._pause)
        due = loop.time() + pause
        await asyncio.sleep(pause)
        try:
            answer = await self._client.request("POST" if given else "GET", path, data=given)
            got, text = answer.status_code, answer.text
        except httpx.HTTPError:
            got, text = 0, ""
        self._clicked.clicks.append(Click(name, loop.time() - due, got, got == status))
        return text if got == status else ""


async def click(
    system: System, accounts: Sequence[Account], seconds: float, pause: float
) -> tuple[Clicked, list[Person]]:
    """Let these people use the portal at once, `pause` seconds between the clicks of each, on average."""
    clicked = Clicked(len(accounts), seconds)
    base = f"http://127.0.0.1:{system.ports()['portal_port']}"
    clients = [
        # Addresses of their own: from a single one they would be held up as one who asks too much.
        httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(local_address=f"127.0.1.{number}"), base_url=base, timeout=60
        )
        for number in range(1, len(accounts) + 1)
    ]
    people = [
        Person(client, account, pause, clicked) for client, account in zip(clients, accounts, strict=True)
    ]
    try:
        await asyncio.gather(*(person.use(seconds) for person in people))
    finally:
        for client in clients:
            await client.aclose()
    return clicked, people
