"""The queue under load: it grows, it drains, several workers share it; the database keeps up."""

from __future__ import annotations

import asyncio
import json
import re

import httpx
import pytest
from prometheus_client.mmap_dict import MmapedDict

from support.load.accounting import account
from support.load.offering import offer
from support.load.watching import watching
from support.system import System, eventually

pytestmark = pytest.mark.timeout(0)
SLOW = "delay=250ms"
ANSWERED = {"role": "gateway", "route": "/api/v1/messages", "status": "202"}


@pytest.fixture
def slow_recipient(system: System):
    """Recipients of the demo client that take their time, for one test."""
    done = system.run("client", "route", "demo", "simulated", SLOW)
    assert done.returncode == 0, done.stderr
    yield
    assert system.run("client", "route", "demo", "inbox").returncode == 0


@pytest.mark.case("TC-L-005")
async def test_the_queue_grows_in_a_peak_and_drains_after_it(
    system: System, slow_recipient, full, told, record
) -> None:
    """More than recipients can take: open messages pile up; at a normal rate they drain to none; none lost."""
    messages = 60_000 if full else 6_000
    async with watching(system, every=0.25) as watch:
        peak = await offer(system, messages / 3, 3, batch=500, told=told)
        calm = await offer(system, 20, 5)
        await eventually(lambda: _open(system) == 0, within=300, what="the queue has drained")
    found = await account(system, peak, calm)
    form = f"{messages} messages in 3 s for recipients that take 250 ms, then 20/s"
    record("TC-L-005", form, **peak.figures(), **watch.figures(), **found.figures())
    depth = watch.values("open")
    assert max(depth) > messages / 20, "the peak was no peak"
    assert depth[-1] == 0
    assert found.accepted == peak.messages + calm.messages
    assert (found.lost, found.doubled) == ([], [])


@pytest.mark.case("TC-L-006", "TC-L-009")
async def test_several_workers_share_the_queue(system: System, slow_recipient, full, told, record) -> None:
    """Three workers take messages at once, each its part; no message is processed twice, no claim is fought over."""
    messages = 30_000 if full else 3_000
    before = _workers(system)
    assert len(before) >= 3
    offered = await offer(system, messages / 3, 3, batch=100, told=told)
    found = await account(system, offered)
    shares = {name: _workers(system)[name]["attempts"] - one["attempts"] for name, one in before.items()}
    lost = sum(one["lost"] for one in _workers(system).values()) - sum(one["lost"] for one in before.values())
    record(
        "TC-L-009",
        f"{messages} messages, {len(before)} workers",
        shares=shares,
        lost_claims=lost,
        **found.figures(),
    )
    assert min(shares.values()) > messages / 20, shares
    assert sum(shares.values()) == messages
    assert lost == 0
    assert (found.lost, found.doubled) == ([], [])


@pytest.mark.case("TC-L-008")
async def test_several_gateways_share_the_load(system: System, full, told, record) -> None:
    """Two gateways on one port: each takes its part of what comes over many connections; none lost, none doubled."""
    seconds = 60 if full else 3
    before = _taken(system)
    assert len(before) >= 2
    offered = await offer(system, 100, seconds, in_turn=True, told=told)
    found = await account(system, offered)
    shares = {name: count - before[name] for name, count in _taken(system).items()}
    form = f"100/s for {seconds} s over 32 connections, {len(shares)} gateways"
    record("TC-L-008", form, shares=shares, **offered.figures(), **found.figures())
    assert offered.success_rate == 1
    # The kernel gives each connection to either by chance.
    assert min(shares.values()) > offered.messages / 20, shares
    assert sum(shares.values()) == offered.messages
    assert (found.lost, found.doubled) == ([], [])


@pytest.mark.case("TC-L-007", "TC-L-011")
async def test_the_database_keeps_up(system: System, full, told, record) -> None:
    """Under load and with many readers at once: queries under 2 s, connections within their pools, none refused."""
    seconds = 60 if full else 8
    token = await _admin_token(system)
    asked: list[tuple[int, float]] = []

    async def read(stop: asyncio.Event) -> None:
        paths = ("/admin/messages", "/admin/stats?period=day", "/audit/events")
        async with system.client(None, "server_port") as client:
            while not stop.is_set():
                for path in paths:
                    answer = await client.get(path, headers={"Authorization": f"Bearer {token}"})
                    asked.append((answer.status_code, answer.elapsed.total_seconds()))

    stop = asyncio.Event()
    readers = [asyncio.create_task(read(stop)) for _ in range(12)]
    async with watching(system) as watch:
        offered = await offer(system, 50, seconds, told=told)
        stop.set()
        await asyncio.gather(*readers)
    found = await account(system, offered)
    slowest = max(seconds for _, seconds in asked)
    record(
        "TC-L-007",
        f"50/s and 12 readers for {seconds} s",
        reads=len(asked),
        slowest_read_ms=round(slowest * 1000),
        **offered.figures(),
        **watch.figures(),
        **found.figures(),
    )
    assert {status for status, _ in asked} == {200}
    assert slowest < 2
    assert watch.slowest_query_ms < 2000
    refused = system.query("SHOW GLOBAL STATUS LIKE 'Connection_errors_max_connections'")[0]["Value"]
    assert int(refused) == 0
    roles = sum(name.startswith(("gateway", "server", "projector")) for name in system.members())
    # Each role's pool, and what watches.
    assert max(watch.values("connections")) <= roles * system.settings.mysql_pool + 4
    assert (found.lost, found.doubled) == ([], [])


def _open(system: System) -> int:
    return int(system.query("SELECT COUNT(*) AS n FROM messages WHERE status='queued'")[0]["n"])


def _workers(system: System) -> dict[str, dict[str, float]]:
    """Attempts recorded and claims lost, by worker."""
    found = {}
    for name, member in system.members().items():
        if name.startswith("worker"):
            text = httpx.get(f"{member['url']}/metrics", timeout=10).text
            found[name] = {
                "attempts": _sum(text, "broker_delivery_attempts_total"),
                "lost": _sum(text, "broker_delivery_lost_claims_total"),
            }
    return found


def _taken(system: System) -> dict[str, float]:
    """Single messages answered with 202, by gateway: out of the files in which they count together."""
    found = {}
    for name, member in system.members().items():
        if name.startswith("gateway"):
            values = MmapedDict.read_all_values_from_file(
                str(system.data / "run" / "gateway-metrics" / f"counter_{member['pid']}.db")
            )
            found[name] = sum(
                value
                for key, value, *_ in values
                if (name_and_labels := json.loads(key))[1] == "broker_http_requests_total"
                and name_and_labels[2] == ANSWERED
            )
    return found


def _sum(text: str, metric: str) -> float:
    return sum(float(value) for value in re.findall(rf"^{metric}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE))


async def _admin_token(system: System) -> str:
    password = (system.data / "admin-password").read_text("utf-8").strip()
    async with system.client(None, "server_port") as client:
        answer = await client.post(
            "/portal/auth/login", json={"email": "admin@example.com", "password": password}
        )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["access_token"])
