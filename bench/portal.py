"""People clicking through the portal: how long its pages take, with many messages in the tables.

    .venv/bin/python bench/portal.py [--messages 1000000] [--people 10] [--pages 100] [--pause 0.5]

A whole system is started and its tables are filled. Each person has signed in and opens pages one after
another, with a pause between: the dashboard, lists with and without filters, further pages, one message, the
overview. Prints one JSON object with milliseconds by page, as the people waited.
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
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import page as pages

from broker.embedded.urls import resolve
from broker.embedded.valkey import free_port
from broker.projections.store import Store
from broker.settings import load

PORTS = ("gateway_port", "server_port", "worker_metrics_port", "projector_metrics_port", "portal_port")
MOST_PAGES_DEEP = 5


async def sign_in(client: httpx.AsyncClient, data: Path) -> None:
    """As the first admin, who sees everybody's messages."""
    csrf = re.search(r'name="csrf" value="([0-9a-f]+)"', (await client.get("/login")).text)
    assert csrf
    password = (data / "admin-password").read_text().strip()
    given = {"email": "admin@example.com", "password": password, "csrf": csrf[1], "next": "/"}
    assert (await client.post("/login", data=given)).status_code == 303


async def click(client: httpx.AsyncClient, count: int, pause: float, took: dict[str, list[float]]) -> None:
    """One person, for so many pages."""

    async def get(name: str, path: str) -> str:
        await asyncio.sleep(random.uniform(0, 2 * pause))
        start = time.perf_counter()
        answer = await client.get(path)
        took[name].append((time.perf_counter() - start) * 1000)
        assert answer.status_code == 200, (path, answer.text)
        return answer.text

    done = 0
    while done < count:
        await get("dashboard", "/")
        await get("overview", "/admin")
        listed = await get("list", "/admin/messages")
        await get("failed", "/admin/messages?status=failed")
        await get("one client", f"/admin/messages?client_id={pages.CLIENT}")
        done += 5
        for _ in range(random.randint(1, MOST_PAGES_DEEP)):
            one = random.choice(re.findall(r'href="(/messages/[0-9a-f-]{36})"', listed))
            await get("message", one)
            done += 1
            following = re.search(r'rel="next" href="([^"]+)"', listed)
            if following is None:
                break
            listed = await get("next page", following[1].replace("&amp;", "&"))
            done += 1


def figures(took: list[float]) -> dict[str, float]:
    """Percentiles in milliseconds."""
    ordered = sorted(took)
    last = len(ordered) - 1
    return {name: round(ordered[round(last * share)], 1) for name, share in
            (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))} | {"pages": len(ordered)}  # fmt: skip


async def measure(data: Path, ports: dict[str, int], args: argparse.Namespace) -> dict[str, object]:
    settings = resolve(load(environ={}, data_dir=data, certs_dir=data / "certs", **ports))
    store = Store(settings.mysql_url or "")
    await pages.fill(store, args.messages)
    await store.close()
    took: dict[str, list[float]] = defaultdict(list)
    base = f"http://127.0.0.1:{ports['portal_port']}"
    async with AsyncExitStack() as stack:
        people = []
        for _ in range(args.people):
            # One after another: all from one address at once would be held up as guessing.
            client = await stack.enter_async_context(httpx.AsyncClient(base_url=base, timeout=60))
            await sign_in(client, data)
            people.append(client)
        await asyncio.gather(*(click(client, args.pages, args.pause, took) for client in people))
    everything = [each for some in took.values() for each in some]
    return {
        "messages": args.messages,
        "people": args.people,
        "pause_seconds": args.pause,
        "all": figures(everything),
        "milliseconds": {name: figures(each) for name, each in took.items()},
    }


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
