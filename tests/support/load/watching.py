"""What a system does under load, sampled while the load runs."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
import pymysql
from redis.exceptions import RedisError

from support.system import System

QUERIES = {
    "latest": "SELECT message_id, status FROM messages ORDER BY queued_at DESC LIMIT 50",
    "of_a_client": "SELECT message_id FROM messages WHERE client_id='demo' ORDER BY queued_at DESC LIMIT 50",
    "statistics": "SELECT SUM(delivered), SUM(failed) FROM statistics",
}


@dataclass
class Watch:
    """Samples: seconds since the start, open messages, lag in events, query times in ms, connections, memory."""

    samples: list[dict[str, Any]] = field(default_factory=list)
    missed: int = 0
    """Samples that could not be taken; an hour's run does not end for one of them."""

    def values(self, name: str) -> list[float]:
        return [sample[name] for sample in self.samples]

    @property
    def slowest_query_ms(self) -> float:
        return max(max(sample["query_ms"].values()) for sample in self.samples)

    def figures(self) -> dict[str, Any]:
        """For the report: the series themselves, and their peaks."""
        return {
            "series": self.samples,
            "samples_missed": self.missed,
            "open_peak": max(self.values("open")),
            "lag_peak": max(self.values("lag")),
            "slowest_query_ms": self.slowest_query_ms,
            "connections_peak": max(self.values("connections")),
            "memory_mib_peak": max(sum(sample["memory_mib"].values()) for sample in self.samples),
        }


@contextlib.asynccontextmanager
async def watching(system: System, every: float = 1.0) -> AsyncIterator[Watch]:
    """Sample `system` beside the body, at its start and its end at least."""
    watch = Watch()
    redis, keys = system.redis(), system.keys()
    started = time.monotonic()

    async def sample() -> None:
        counts = [await redis.hlen(partition.open) for partition in keys.partitions]
        seen = await asyncio.to_thread(_outside, system)
        watch.samples.append({"t": round(time.monotonic() - started, 2), "open": sum(counts), **seen})

    async def go_on() -> None:
        while True:
            try:
                await sample()
            except (OSError, TimeoutError, httpx.HTTPError, pymysql.err.MySQLError, RedisError):
                watch.missed += 1
            await asyncio.sleep(every)

    await sample()
    task = asyncio.create_task(go_on())
    try:
        yield watch
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await sample()
        await redis.aclose()


def _outside(system: System) -> dict[str, Any]:
    times: dict[str, float] = {}
    with system.mysql() as link, link.cursor() as cursor:
        for name, query in QUERIES.items():
            began = time.perf_counter()
            cursor.execute(query)
            cursor.fetchall()
            times[name] = round((time.perf_counter() - began) * 1000, 2)
        cursor.execute("SHOW GLOBAL STATUS LIKE 'Threads_connected'")
        connections = int(cursor.fetchone()["Value"])
    members = [one for one in system.members().values() if one["pid"]]
    memory = {}
    for one in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            memory[one["name"]] = psutil.Process(one["pid"]).memory_info().rss >> 20
    return {"query_ms": times, "connections": connections, "memory_mib": memory, "lag": lag(system)}


def lag(system: System) -> int:
    """Events that the slowest projection has not applied yet, over all partitions."""
    text = httpx.get(f"{system.members()['projector']['url']}/metrics", timeout=10).text
    found = re.findall(
        r'^broker_projection_lag_events\{.*projection="([^"]+)".*\} (\S+)$', text, re.MULTILINE
    )
    totals: dict[str, float] = {}
    for projection, events in found:
        totals[projection] = totals.get(projection, 0) + float(events)
    return round(max(totals.values(), default=0))
