"""People at the portal, each with a real browser; whatever the browser complains of fails the test."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

import bcrypt
import httpx
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Response

from broker.events import user_commands
from broker.events.control import Registry
from broker.events.user_commands import UserCommands
from broker.preparation import opened
from support import system as systems
from support.system import System
from support.waiting import wait_until

PASSWORD = "correct horse battery"
PEOPLE = {
    "reader@example.com": ("user", ["demo"]),
    "manager@example.com": ("user", ["demo", "lost"]),
    "other@example.com": ("user", ["acme"]),
    "changing@example.com": ("user", ["acme"]),
    "guessed@example.com": ("user", []),
    "nobody@example.com": ("user", []),
    "boss@example.com": ("admin", []),
    "auditor@example.com": ("auditor", []),
}
NUMBER = "+4915200000001"
OTHER_NUMBER = "+4915200000002"
DEMO = 119
"""Messages of `demo` from NUMBER; one more is from OTHER_NUMBER. No test adds to them."""
LOST = 2
FAILED = 4
HOSTILE = '<script>window.hurt=1</script><img src=x onerror="window.hurt=1">{{ 7*7 }}=cmd|x \u202eمرحبا 🎉'
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# A status that a test asks for on purpose is told on the console, too; the test asserts the status itself.
_EXPECTED = re.compile(r"Failed to load resource: the server responded with a status of [45]\d\d")


async def register(system: System, client: str, number: str = NUMBER, body: str = "hello") -> str:
    """A message of a client; its id."""
    async with system.client("services/internal", "server_port") as http:
        given = {"client_id": client, "sender_number": number, "message_body": body}
        answer = await http.post("/internal/messages/register", json=given)
        assert answer.status_code == 200, answer.text
        return answer.json()["message_id"]


@contextlib.contextmanager
def peopled(directory: Path) -> Iterator[System]:
    """A system with PEOPLE and messages.

    `demo` (DEMO + 1 messages, counted by tests) and `notes` (for whatever a test sends) are delivered to;
    `last` fails at once; `lost` (LOST messages, counted) and `acme` (FAILED, one for each test that wants one) fail at the second
    attempt, four seconds after the first; `stuck` waits for a person.
    """
    with systems.running(directory, retry_interval="4", max_attempts="2") as running:
        asyncio.run(_people(running))
        yield running


async def _people(system: System) -> None:
    async with opened(system.settings) as tools:
        for client in ("acme", "lost", "notes", "stuck", "last"):
            await tools.clients.register_client(client, None, actor="system")
        for client in ("acme", "lost"):
            await tools.clients.change_route(client, "simulated", "success=0", actor="system")
        # Nothing is sent to a webhook without TLS: its messages wait for a person.
        await tools.clients.change_route(
            "stuck", "webhook", "http://stuck.example/hook", b"s" * 32, actor="system"
        )
        await tools.clients.change_route("last", "simulated", "success=0,permanent=1", actor="system")
        for email, (role, clients) in PEOPLE.items():
            await account(tools.registry, email, role, clients)
    await _heard(system)
    await _sent(system)


async def account(registry: Registry, email: str, role: str, clients: Sequence[str] = ()) -> None:
    """An account with PASSWORD, which is checked in no time: of bcrypt's cost others' tests tell."""

    async def quick(password: str) -> str:
        return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()

    with patch.object(user_commands, "hash_password", quick):
        await UserCommands(registry).create_user(email, PASSWORD, role, list(clients), actor="system")


async def _heard(system: System) -> None:
    """Wait until server and worker have heard of the last route, and so of all."""

    async def failed() -> bool:
        async with system.client("services/internal", "server_port") as http:
            given = {"client_id": "last", "sender_number": NUMBER, "message_body": "?"}
            answer = await http.post("/internal/messages/register", json=given)
        if answer.status_code != 200:
            return False
        query = "SELECT status FROM messages WHERE message_id=%s AND status<>'queued'"
        rows = await systems.eventually(lambda: system.query(query, answer.json()["message_id"]))
        return rows[0]["status"] == "failed"

    await wait_until(failed, within=60, what="a message by the last route")


async def _sent(system: System) -> None:
    """Before anybody looks, so that nobody waits for failures."""
    async with system.client() as http:
        items = [{"sender_number": NUMBER, "message_body": f"hello {n}"} for n in range(DEMO)]
        items.append({"sender_number": OTHER_NUMBER, "message_body": HOSTILE})
        answer = await http.post("/api/v1/messages/batch", json={"messages": items})
        assert answer.status_code == 202, answer.text
    await asyncio.gather(
        *(register(system, "lost", body=HOSTILE) for _ in range(LOST)),
        *(register(system, "acme", body=HOSTILE) for _ in range(FAILED)),
    )


async def settled(system: System, client: str, count: int, status: str) -> list[str]:
    """Wait until so many of the client's messages have this status in the read model; their ids."""

    def there() -> list[str] | None:
        found = system.query(
            "SELECT message_id FROM messages WHERE client_id=%s AND status=%s ORDER BY queued_at,message_id",
            client,
            status,
        )
        return [row["message_id"] for row in found] if len(found) >= count else None

    return await systems.eventually(there, within=60, what=f"{count} {status} of {client}")


def word(page: str) -> str:
    """The word that the page's forms bring back."""
    found = re.search(r'name="csrf" value="([0-9a-f]{32})"', page)
    assert found is not None, page
    return found[1]


def visiting(system: System, cookie: str | None = None) -> httpx.Client:
    """A client of the portal without a browser."""
    cookies = {} if cookie is None else {"broker": cookie}
    return httpx.Client(base_url=f"http://localhost:{system.ports()['portal_port']}", cookies=cookies)


def ticket(system: System, email: str) -> str:
    """Sign in without a browser; the cookie."""
    with visiting(system) as http:
        given = {"email": email, "password": PASSWORD, "csrf": word(http.get("/login").text), "next": "/"}
        answer = http.post("/login", data=given)
        assert answer.status_code == 303, answer.text
        return answer.cookies["broker"]


class Person:
    """Somebody at a browser."""

    def __init__(self, system: System, page: Page) -> None:
        self.system = system
        self.page = page
        self.base = f"http://localhost:{system.ports()['portal_port']}"
        self.complaints: list[str] = []
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not _EXPECTED.match(message.text):
            self.complaints.append(message.text)

    @property
    def path(self) -> str:
        """Where the browser is, without the origin."""
        return self.page.url.removeprefix(self.base)

    async def go(self, path: str) -> Response:
        """Open a page of the portal."""
        answer = await self.page.goto(self.base + path)
        assert answer is not None
        return answer

    async def sign_in(self, email: str, password: str = PASSWORD) -> None:
        """Fill in the login page that is open, and wait for what comes of it."""
        await self.page.fill("#email", email)
        await self.page.fill("#password", password)
        async with self.page.expect_navigation():
            await self.page.click("main button[type=submit]")

    async def signed_in(self, email: str) -> Person:
        """Open the portal and sign in."""
        await self.go("/login")
        await self.sign_in(email)
        assert not self.path.startswith("/login"), await self.text()
        return self

    async def carry(self, cookie: str) -> Person:
        """Come with the cookie of somebody signed in."""
        await self.page.context.add_cookies([{"name": "broker", "value": cookie, "url": self.base}])
        return self

    async def press(self, selector: str) -> None:
        """Press something that leads to another page."""
        async with self.page.expect_navigation():
            await self.page.click(selector)

    async def text(self) -> str:
        """What the page says."""
        return await self.page.inner_text("body")

    async def rows(self) -> list[str]:
        """The rows of the list on the page."""
        return await self.page.locator("#list tbody tr").all_inner_texts()


@contextlib.asynccontextmanager
async def person(system: System, browser: Browser, **options) -> AsyncIterator[Person]:
    """Somebody with a fresh profile; `options` are the browser context's."""
    context = await browser.new_context(**options)
    try:
        async with somebody(system, context) as found:
            yield found
    finally:
        await context.close()


@contextlib.asynccontextmanager
async def somebody(system: System, profile: BrowserContext) -> AsyncIterator[Person]:
    """Somebody at a page of a profile."""
    page = await profile.new_page()
    try:
        found = Person(system, page)
        yield found
        assert found.complaints == []
    finally:
        await page.close()


class Profiles:
    """A browser profile for each of PEOPLE, signed in once; for tests that leave its session as it is.

    That of "" is for who has not signed in.
    """

    def __init__(self, system: System, browser: Browser, tickets: Callable[[str], str]) -> None:
        self._system = system
        self._browser = browser
        self._tickets = tickets
        self._profiles: dict[str, BrowserContext] = {}

    @contextlib.asynccontextmanager
    async def __call__(self, email: str) -> AsyncIterator[Person]:
        """Somebody signed in, at a page of their own that shows nothing yet."""
        if email not in self._profiles:
            self._profiles[email] = await self._browser.new_context()
        async with somebody(self._system, self._profiles[email]) as found:
            if email:
                await found.carry(self._tickets(email))
            yield found

    async def close(self) -> None:
        """End the profiles."""
        for profile in self._profiles.values():
            await profile.close()
