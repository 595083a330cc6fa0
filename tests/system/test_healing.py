"""Redis or MySQL away and back, groups destroyed: everything waits, says so, and goes on by itself.

The servers are the test's own, reached through BROKER_REDIS_URL and BROKER_MYSQL_URL, so that nobody restarts them.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from broker.embedded.mariadb import MariaDB
from broker.embedded.valkey import Valkey
from support import system as systems
from support.furnishing import furnish, kept
from support.system import System, eventually
from support.waiting import wait_until

ROLES = ("gateway", "server", "worker", "projector")
MESSAGE = {"sender_number": "+4915200000000", "message_body": "hello"}


@pytest.fixture(scope="module")
def own_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """For the tests of this module; one that stops it starts it again."""
    with kept(Valkey(tmp_path_factory.mktemp("valkey"), port=0)) as server:
        yield server


@pytest.fixture(scope="module")
def own_mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDB]:
    """For the tests of this module; one that stops it starts it again."""
    with kept(furnish(MariaDB(tmp_path_factory.mktemp("mariadb"), port=0))) as server:
        yield server


@pytest.fixture(scope="module")
def system(tmp_path_factory, own_valkey: Valkey, own_mariadb: MariaDB) -> Iterator[System]:
    """A system on servers of the module's own."""
    urls = {"redis_url": own_valkey.url, "mysql_url": own_mariadb.url}
    with systems.running(tmp_path_factory.mktemp("healing"), lease_ttl="2", **urls) as running:
        yield running


async def submit(client: httpx.AsyncClient) -> str:
    answer = await client.post("/api/v1/messages", json=MESSAGE)
    assert answer.status_code == 202, answer.text
    return answer.json()["message_id"]


async def delivered(system: System, message_id: str) -> None:
    """Wait until the table says so, once."""
    rows = await eventually(
        lambda: system.query("SELECT * FROM messages WHERE message_id=%s AND status='delivered'", message_id)
    )
    assert rows[0]["attempt_count"] == 1


def health(system: System, role: str) -> httpx.Response:
    member = system.members()[role]
    path = "/api/v1/health" if role == "gateway" else "/health"
    context = ssl.create_default_context(cafile=str(system.certs / "ca.crt"))
    return httpx.get(member["url"] + path, verify=context)


def unwell(system: System, role: str, check: str) -> bool:
    answer = health(system, role)
    return answer.status_code == 503 and answer.json()["checks"].get(check, "ok") != "ok"


def busy(system: System, seconds: float) -> dict[str, float]:
    """Share of one core that each role uses over a while."""
    processes = {role: psutil.Process(system.members()[role]["pid"]) for role in ROLES}
    before = {role: sum(process.cpu_times()[:2]) for role, process in processes.items()}
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        psutil.cpu_percent(interval=0.5)
    passed = time.monotonic() - start
    return {role: (sum(p.cpu_times()[:2]) - before[role]) / passed for role, p in processes.items()}


@pytest.mark.case("TC-P-008", "TC-W-007")
async def test_redis_away_and_back(system: System, own_valkey: Valkey) -> None:
    """Submits get 503 with Retry-After, nobody spins, and everything resumes when Redis is back."""
    pids = {role: system.members()[role]["pid"] for role in ROLES}
    async with system.client() as client:
        before = await submit(client)
        await delivered(system, before)
        await own_valkey.kill()
        answer = await eventually_refused(client)
        assert answer.json()["error"] in {"log_unavailable", "trust_unproved"}
        assert int(answer.headers["Retry-After"]) >= 1
        for role, check in {
            "gateway": "redis",
            "server": "redis",
            "worker": "log",
            "projector": "redis",
        }.items():
            await eventually(
                lambda r=role, c=check: unwell(system, r, c), what=f"{role} says what it waits for"
            )
        used = busy(system, 6)
        assert max(used.values()) < 0.25, f"busy loop: {used}"
        await own_valkey.start()
        await system.healthy()
        assert (await client.get(f"/api/v1/messages/{before}")).json()["status"] == "delivered"
        await delivered(system, await submit(client))
    assert {role: system.members()[role]["pid"] for role in ROLES} == pids, "nobody had to be restarted"


async def eventually_refused(client: httpx.AsyncClient) -> httpx.Response:
    async def refused() -> httpx.Response | None:
        answer = await client.post("/api/v1/messages", json=MESSAGE)
        return answer if answer.status_code == 503 else None

    return await wait_until(refused)


@pytest.mark.case("TC-P-009")
async def test_mysql_away_and_back(system: System, own_mariadb: MariaDB) -> None:
    """Submits still answer 202 and are delivered; the tables catch up when MySQL is back."""
    async with system.client() as client:
        await delivered(system, await submit(client))
        await own_mariadb.kill()
        accepted = [await submit(client) for _ in range(20)]

        async def all_done() -> bool:
            answers = [await client.get(f"/api/v1/messages/{one}") for one in accepted]
            assert all(answer.status_code in {200, 503} for answer in answers), "never a 404"
            return all(
                answer.status_code == 200 and answer.json()["status"] == "delivered" for answer in answers
            )

        await wait_until(all_done, what="delivered without MySQL")
        await eventually(lambda: unwell(system, "projector", "mysql"))
        assert health(system, "gateway").status_code == 200
        used = busy(system, 6)
        assert max(used.values()) < 0.25, f"busy loop: {used}"
        await own_mariadb.start()
        for one in accepted:
            await delivered(system, one)
        await system.healthy()


@pytest.mark.case("TC-P-009")
async def test_the_server_killed(system: System) -> None:
    """While no server answers, submits get 202 and the gateway is well; once one is back, each is delivered once."""
    accepted: list[str] = []
    async with system.client() as client:
        while True:
            pid = system.kill("server")
            accepted += [await submit(client) for _ in range(5)]
            assert health(system, "gateway").status_code == 200
            if not reachable(system, "server"):
                # It was gone for all of this. Otherwise it was back too soon to tell.
                break
            await system.back("server", pid)
        await system.back("server", pid)
        done = "SELECT message_id FROM messages WHERE status='delivered' AND message_id IN %s"
        await eventually(lambda: len(system.query(done, accepted)) == len(accepted), what="all delivered")
        for one in accepted:
            assert (await client.get(f"/api/v1/messages/{one}")).json()["status"] == "delivered"
    history = "SELECT subject FROM audit_log WHERE type='Delivered' AND subject IN %s"
    found = await eventually(lambda: len(rows := system.query(history, accepted)) >= len(accepted) and rows)
    assert sorted(one["subject"] for one in found) == sorted(accepted)
    await system.healthy()


def reachable(system: System, role: str) -> bool:
    """Whether anybody listens on the role's port."""
    try:
        with socket.create_connection(("127.0.0.1", system.overrides[f"{role}_port"]), timeout=10):
            return True
    except ConnectionRefusedError:
        return False


async def test_destroyed_groups_are_made_again(system: System) -> None:
    """XGROUP DESTROY of both groups on every partition: nothing is lost, nothing delivered or counted twice."""
    redis, keys = system.redis(), system.keys()
    everything: set[str] = set()
    async with system.client() as client:
        for _ in range(5):
            accepted = [await submit(client) for _ in range(20)]
            for partition in keys.partitions:
                for group in ("delivery", "projections"):
                    await redis.xgroup_destroy(partition.events, group)
            accepted += [await submit(client) for _ in range(20)]
            for one in accepted:
                await delivered(system, one)
            everything |= set(accepted)
    for kind in ("MessageSubmitted", "Delivered"):
        counts = system.query(
            "SELECT subject, COUNT(*) AS n FROM audit_log WHERE type=%s GROUP BY subject", kind
        )
        assert everything <= {one["subject"] for one in counts}
        assert {one["n"] for one in counts} == {1}
    await redis.aclose()
