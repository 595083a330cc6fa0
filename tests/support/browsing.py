"""People at the portal, each with a real browser; whatever the browser complains of fails the test."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from playwright.async_api import Browser, ConsoleMessage, Page, Response

from broker.preparation import opened
from support import system as systems
from support.system import System

PASSWORD = "correct horse battery"
PEOPLE = {
    "reader@example.com": ("user", ["demo"]),
    "other@example.com": ("user", ["acme"]),
    "nobody@example.com": ("user", []),
    "boss@example.com": ("admin", []),
    "auditor@example.com": ("auditor", []),
}
NUMBER = "+4915200000001"
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
    """A system: `demo` is delivered to, `acme` fails at its second attempt, four seconds later; and PEOPLE."""
    with systems.running(directory, retry_interval="4", max_attempts="2") as running:
        asyncio.run(_people(running))
        yield running


async def _people(system: System) -> None:
    async with opened(system.settings) as tools:
        await tools.clients.register_client("acme", None, actor="system")
        await tools.clients.change_route("acme", "simulated", "success=0", actor="system")
        # Nothing is sent to a webhook without TLS: its messages wait for a person.
        await tools.clients.register_client("stuck", None, actor="system")
        await tools.clients.change_route(
            "stuck", "webhook", "http://stuck.example/hook", b"s" * 32, actor="system"
        )
        for email, (role, clients) in PEOPLE.items():
            await tools.users.create_user(email, PASSWORD, role, clients, actor="system")


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
        found = Person(system, await context.new_page())
        yield found
        assert found.complaints == []
    finally:
        await context.close()
