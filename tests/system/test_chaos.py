"""kill -9 of everything at random while messages flow; afterwards nothing is lost, doubled or readable."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import Counter
from pathlib import Path

import httpx
import pytest

from broker.domain import ids
from broker.embedded import urls
from broker.events import codec, log_identity, types
from broker.events.keys import LogKeys, StreamKeys
from broker.events.positions import at
from broker.projections import schema
from broker.projections.store import Store
from support import readmodels
from support import system as systems
from support.system import System, eventually
from support.waiting import wait_until

MESSAGES, FULL = 2000, 5000
SENDERS = 24
VICTIMS = ("worker-1", "worker-2", "projector", "gateway-1", "gateway-2", "valkey", "mariadb", "server")
ENDS = (types.Delivered, types.Failed, types.MessageDiscarded)
MARKER = "chaos-body-marker"


class Producer:
    """Sends messages with idempotency keys until each has its 202; unknown answers are repeated."""

    def __init__(self, system: System, messages: int) -> None:
        self.system = system
        self.messages = messages
        self.acknowledged: dict[str, str] = {}
        self.unknown = 0
        self._left = list(range(messages))

    async def run(self) -> None:
        await asyncio.gather(*(self._send_all() for _ in range(SENDERS)))

    async def _send_all(self) -> None:
        async with self.system.client() as client:
            while self._left:
                number = self._left.pop()
                await self._send(client, f"key-{number}", number)

    async def _send(self, client: httpx.AsyncClient, key: str, number: int) -> None:
        body = {"sender_number": f"+49152{number:08d}", "message_body": f"{MARKER} {number}"}
        while True:
            try:
                answer = await client.post("/api/v1/messages", json=body, headers={"Idempotency-Key": key})
            except httpx.HTTPError:
                self.unknown += 1
                await asyncio.sleep(0)
                continue
            if answer.status_code == 202:
                self.acknowledged[key] = answer.json()["message_id"]
                return
            assert answer.status_code == 503, answer.text
            self.unknown += 1


async def kill_at_random(system: System, producer: Producer, chance: random.Random) -> Counter:
    """Kill one thing after another while messages are being sent; what was killed, how often."""
    killed: Counter = Counter()
    step = producer.messages // 12
    for mark in range(step, producer.messages - step, step):
        await wait_until(
            lambda mark=mark: len(producer.acknowledged) >= mark, within=120, what=f"{mark} accepted"
        )
        victim = chance.choice([v for v in VICTIMS if killed[v] == min(killed[x] for x in VICTIMS)])
        if system.members()[victim]["pid"] is None:
            continue
        pid = system.kill(victim)
        killed[victim] += 1
        await system.back(victim, pid)
    return killed


async def read(redis, keys: StreamKeys) -> list[codec.Recorded]:
    return [
        codec.recorded(codec.stored(at(keys.stream, entry), fields))
        for entry, fields in await redis.xrange(keys.events)
    ]


def check_history(history: list[codec.Recorded], acknowledged: set[str]) -> None:
    """Every acknowledged message was submitted once, tried 1, 2, … and ended once in each cycle."""
    submitted: Counter = Counter()
    ends: Counter = Counter()
    attempts: dict[tuple[str, int], list[int]] = {}
    for one in history:
        message = ids.text(one.subject)
        match one.event:
            case types.MessageSubmitted():
                submitted[message] += 1
            case types.DeliveryAttempted(cycle=cycle, attempt=attempt):
                attempts.setdefault((message, cycle), []).append(attempt)
            case types.Delivered() | types.Failed() | types.MessageDiscarded():
                ends[message, one.event.cycle] += 1
    assert acknowledged <= set(submitted), "an acknowledged message is gone"
    assert set(submitted.values()) == {1}
    assert len(submitted) == len(acknowledged)
    assert {message: ends[message, 1] for message in submitted} == dict.fromkeys(submitted, 1)
    assert all(made == list(range(1, len(made) + 1)) for made in attempts.values())


async def fold_again(system: System, directory: Path) -> tuple[dict, dict]:
    """The tables as they are, and as a fresh projector makes them out of the whole history."""
    settings = system.settings
    database, valkey = urls.mariadb(settings), urls.valkey(settings)
    await asyncio.gather(database.start(), valkey.start())
    redis = system.redis()
    fresh_url = settings.mysql_url.replace("/message_system?", "/message_system_again?")
    live, fresh = Store(settings.mysql_url), Store(fresh_url)
    try:
        await live.execute("CREATE DATABASE message_system_again CHARACTER SET utf8mb4")
        await asyncio.to_thread(schema.migrate, fresh_url)
        identity = log_identity.read_file(settings)
        keys = LogKeys(settings.log_name, identity.partitions)
        runners = [readmodels.runner(redis, stream, identity, fresh, batch=1000) for stream in keys.streams]
        async with readmodels.running(*runners):
            for stream in keys.streams:
                newest = await redis.xrevrange(stream.events, count=1)
                if newest:
                    last = at(stream.stream, newest[0][0])
                    await wait_until(lambda last=last: readmodels.reached(fresh, last), within=120)
        return await readmodels.tables(live), await readmodels.tables(fresh)
    finally:
        await live.close()
        await fresh.close()
        await redis.aclose()
        await asyncio.gather(database.stop(), valkey.stop())


@pytest.mark.case("TC-I-003", "TC-W-005", "TC-W-007", "TC-W-008", "TC-L-006", "TC-L-008")
async def test_nothing_is_lost_or_doubled_whatever_is_killed(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Promises 1, 2, 3 and 5 hold through kill -9 of worker, projector, gateway, server, Valkey and MariaDB."""
    messages = FULL if request.config.getoption("--full") else MESSAGES
    seed = secrets.randbits(32)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    quick = {"heartbeat_ttl": "2", "claim_ttl": "5", "lease_ttl": "2", "retry_interval": "1"}
    with systems.running(tmp_path / "data", "--workers", "2", "--gateways", "2", **quick) as system:
        producer = Producer(system, messages)
        sending = asyncio.create_task(producer.run())
        killed = await kill_at_random(system, producer, random.Random(seed))
        await sending
        assert sum(killed.values()) >= 8, killed
        redis, keys = system.redis(), system.keys()

        async def settled() -> bool:
            counts = [await redis.hlen(partition.open) for partition in keys.partitions]
            return sum(counts) == 0

        await wait_until(settled, within=120, what="every message has an outcome")
        history = [one for partition in keys.partitions for one in await read(redis, partition)]
        assert len(set(producer.acknowledged.values())) == messages
        check_history(history, set(producer.acknowledged.values()))
        await eventually(
            lambda: (
                system.query("SELECT COUNT(*) AS n FROM messages WHERE status<>'queued'")[0]["n"] == messages
            )
        )
        await eventually(
            lambda: (
                system.query("SELECT COUNT(*) AS n FROM audit_log WHERE stream NOT IN ('control','access')")[
                    0
                ]["n"]
                == len(history)
            )
        )
        await redis.aclose()
        system.down()
        live, again = await fold_again(system, tmp_path)
        for name, rows in again.items():
            assert live[name] == rows, name
        for path in (one for one in system.data.rglob("*") if one.is_file()):
            assert MARKER.encode() not in path.read_bytes(), path
