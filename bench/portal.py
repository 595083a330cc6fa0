"""People clicking through the portal: how long its pages take, with many messages in the tables.

    .venv/bin/python bench/portal.py [--messages 1000000] [--people 10] [--pages 100] [--pause 0.5]

A whole system is started, and its tables are filled with messages, their attempts and their history. Of five
people two are admins, two are readers of one client and one is an auditor. Each has signed in and opens pages
one after another, with a pause between. Prints one JSON object: milliseconds by page, as the people waited.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import filling
import httpx

from broker.embedded.urls import resolve
from broker.embedded.valkey import free_port
from broker.preparation import Tools, opened
from broker.projections.store import Store
from broker.settings import load

PORTS = ("gateway_port", "server_port", "worker_metrics_port", "projector_metrics_port", "portal_port")
ROLES = ("admin", "user", "admin", "user", "auditor")
PASSWORD = "clicking through it all"  # noqa: S105  of nobody but here
MOST_PAGES_DEEP = 5
MESSAGE = re.compile(r'href="(/messages/([0-9a-f-]{36}))"')
EVENT = re.compile(r'href="(/audit/[0-9a-z]+:[0-9]+-[0-9]+)"')
NEXT = re.compile(r'rel="next" href="([^"]+)"')


class Person:
    """Somebody with a browser. `client`: whose messages a reader sees."""

    def __init__(
        self, http: httpx.AsyncClient, role: str, client: int, pause: float, took: dict[str, list[float]]
    ) -> None:
        self._http = http
        self._role = role
        self._client = client
        self._pause = pause
        self._took = took
        self.seen = 0

    async def sign_in(self, email: str) -> None:
        """By the login page."""
        csrf = re.search(r'name="csrf" value="([0-9a-f]+)"', (await self._http.get("/login")).text)
        assert csrf
        given = {"email": email, "password": PASSWORD, "csrf": csrf[1], "next": "/"}
        assert (await self._http.post("/login", data=given)).status_code == 303

    async def click(self, count: int) -> None:
        """So many pages, and what is left of the last walk."""
        walk: Callable[[], Awaitable[None]] = {
            "admin": self._administer,
            "user": self._read,
            "auditor": self._audit,
        }[self._role]
        while self.seen < count:
            await walk()

    async def _get(self, name: str, path: str) -> str:
        """A page, after a pause."""
        await asyncio.sleep(random.uniform(0, 2 * self._pause))
        start = time.perf_counter()
        answer = await self._http.get(path)
        self._took[name].append((time.perf_counter() - start) * 1000)
        assert answer.status_code == 200, (path, answer.text)
        self.seen += 1
        return answer.text

    async def _read(self) -> None:
        """A reader: what is new, then some message, found in one of the ways there are."""
        await self._get("dashboard", "/")
        await self._walk(await self._get("list", "/messages"))
        await self._get("failed", "/messages?status=failed")
        await self._found(f"/messages?search={self._number(self._client)}")
        await self._get("a day", f"/messages?from_date={_day(2)}&to_date={_day(1)}")
        await self._get("page 20", "/messages?page=20")

    async def _administer(self) -> None:
        """An admin: how it stands, then everybody's messages."""
        await self._get("dashboard", "/")
        await self._get("overview", "/admin")
        await self._walk(await self._get("list of all", "/admin/messages"))
        await self._get("failed of all", "/admin/messages?status=failed")
        one = random.randrange(len(filling.CLIENTS))
        await self._get("one client", f"/admin/messages?client_id={filling.CLIENTS[one]}")
        await self._found(f"/admin/messages?search={self._number(one)}")
        await self._get("a day of all", f"/admin/messages?from_date={_day(2)}&to_date={_day(1)}")
        await self._get("parked", "/admin/parked")
        await self._get("clients", "/admin/clients")

    async def _audit(self) -> None:
        """An auditor: the newest events, then some by what is known of them."""
        listed = await self._get("history", "/audit")
        events = EVENT.findall(listed)
        await self._get("event", random.choice(events))
        await self._get("history by type", "/audit?type=Failed")
        await self._get("history by actor", f"/audit?actor=client:{random.choice(filling.CLIENTS)}")
        # Nothing of its kind is among the newest events.
        await self._get("history by rare type", "/audit?type=MessageDiscarded")
        await self._get("history by client", f"/audit?client_id={random.choice(filling.CLIENTS)}")
        await self._get("history of a day", f"/audit?from_date={_day(2)}&to_date={_day(1)}")
        if (following := NEXT.search(listed)) is not None:
            await self._get("next page of history", following[1].replace("&amp;", "&"))

    async def _walk(self, listed: str) -> None:
        """Messages of a list, and of the pages that follow."""
        for _ in range(random.randint(1, MOST_PAGES_DEEP)):
            await self._get("message", random.choice(MESSAGE.findall(listed))[0])
            following = NEXT.search(listed)
            if following is None:
                break
            listed = await self._get("next page", following[1].replace("&amp;", "&"))

    async def _found(self, path: str) -> None:
        await self._get("by number", path.replace("+", "%2B"))

    def _number(self, client: int) -> str:
        return filling.number(client, random.randrange(filling.NUMBERS))


def _day(ago: int) -> str:
    return f"{datetime.now(UTC) - timedelta(days=ago):%Y-%m-%d}"


def figures(took: list[float]) -> dict[str, float]:
    """Percentiles in milliseconds."""
    ordered = sorted(took)
    last = len(ordered) - 1
    return {name: round(ordered[round(last * share)], 1) for name, share in
            (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))} | {"pages": len(ordered)}  # fmt: skip


async def measure(data: Path, ports: dict[str, int], args: argparse.Namespace) -> dict[str, object]:
    """Fill the tables, let everybody sign in, then click."""
    settings = resolve(load(environ={}, data_dir=data, certs_dir=data / "certs", **ports))
    async with opened(settings) as tools:
        sealer = await filling.register(tools)
        emails = [await _account(tools, number) for number in range(args.people)]
        store = Store(settings.mysql_url or "", timeout=600)
        began = time.perf_counter()
        await filling.fill(store, sealer, args.messages, len(tools.keys.partitions))
        filled = time.perf_counter() - began
        await store.close()
    took: dict[str, list[float]] = defaultdict(list)
    base = f"http://127.0.0.1:{ports['portal_port']}"
    async with AsyncExitStack() as stack:
        people = []
        for number, email in enumerate(emails):
            # One after another: all from one address at once would be held up as guessing.
            http = await stack.enter_async_context(httpx.AsyncClient(base_url=base, timeout=60))
            people.append(Person(http, _role(number), _client(number), args.pause, took))
            await people[-1].sign_in(email)
        await asyncio.gather(*(person.click(args.pages) for person in people))
    everything = [each for some in took.values() for each in some]
    return {
        "messages": args.messages,
        "fill_seconds": round(filled),
        "people": args.people,
        "pause_seconds": args.pause,
        "all": figures(everything),
        "milliseconds": {name: figures(each) for name, each in took.items()},
    }


async def _account(tools: Tools, number: int) -> str:
    """The e-mail address of somebody with an account."""
    email, role = f"person-{number}@example.com", _role(number)
    clients = [filling.CLIENTS[_client(number)]] if role == "user" else []
    await tools.users.create_user(email, PASSWORD, role, clients, actor="system")
    return email


def _role(number: int) -> str:
    return ROLES[number % len(ROLES)]


def _client(number: int) -> int:
    return number % len(filling.CLIENTS)


def main() -> None:
    """Set up, measure, tear down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--people", type=int, default=10)
    parser.add_argument("--pages", type=int, default=100, help="of each person")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between clicks, on average")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory) / "data"
        ports = {name: free_port() for name in PORTS}
        environ = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
        environ |= {f"BROKER_{name.upper()}": str(port) for name, port in ports.items()}
        command = [sys.executable, "-m", "broker"]
        subprocess.run([*command, "up", "--detach", "--data", str(data)], env=environ, check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        try:
            print(json.dumps(asyncio.run(measure(data, ports, args)), indent=2))
        finally:
            subprocess.run([*command, "down", "--data", str(data)], env=environ, check=True,
                           stdout=subprocess.DEVNULL)  # fmt: skip


if __name__ == "__main__":
    main()
