"""Events a second into MySQL: a history of delivered messages, folded from its beginning by one projector.

    .venv/bin/python bench/project.py [--messages 40000] [--only messages,audit_log] [--window 500]

An own Valkey and an own MariaDB (flushed at every commit) are filled and migrated first; the clock runs from
the start of the projector to its last commit. `--window` messages lie between a submit and its outcome.
CPU is given per event and process, because the three share the machine. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import psutil
import uvloop

from broker import clock
from broker.domain import ids
from broker.embedded.mariadb import MariaDB
from broker.embedded.valkey import Valkey
from broker.events import codec, connection, envelope, types
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.lifecycle import calm_collector
from broker.projections import catalog, schema
from broker.projections.store import Store
from broker.services.projector.role import Projector
from broker.settings import Settings
from broker.telemetry import configure

PARTITIONS = 4
SEALED_BYTES = 160
CLIENTS = 20


def entry(subject: bytes, event: types.Event, actor: str, correlation: str) -> dict[bytes, bytes]:
    """The fields of a stream entry."""
    return {
        b"t": codec.tag_of(event).encode(),
        b"s": subject,
        b"m": envelope.encode(clock.now_ms(), actor, correlation),
        b"d": codec.encode(event),
    }


async def fill(redis, keys: LogKeys, messages: int, window: int) -> int:
    """Submit, attempt and delivery of `messages` messages, over all partitions; the number of events."""
    share = messages // PARTITIONS
    for partition in keys.partitions:
        waiting: list[tuple[bytes, str, str]] = []
        pipe = redis.pipeline(transaction=False)

        def outcome(pipe=pipe, partition=partition, waiting=waiting) -> None:
            subject, client, correlation = waiting.pop(0)
            for event in (
                types.DeliveryAttempted(client, 1, 1, "inbox", True, 12, 200),
                types.Delivered(client, 1, 1),
            ):
                pipe.xadd(partition.events, entry(subject, event, "worker:w1", correlation))

        for number in range(share):
            client = f"client-{number % CLIENTS}"
            subject, correlation = ids.new(partition.number), envelope.new_correlation_id()
            event = types.MessageSubmitted(client, os.urandom(SEALED_BYTES), os.urandom(32), os.urandom(32))
            pipe.xadd(partition.events, entry(subject, event, f"client:{client}", correlation))
            waiting.append((subject, client, correlation))
            if len(waiting) > window:
                outcome()
            if number % 500 == 499:
                await pipe.execute()
        while waiting:
            outcome()
        await pipe.execute()
    return 3 * share * PARTITIONS


def cpu(pid: int) -> float:
    """Seconds of CPU that a process used so far."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


async def measure(options: argparse.Namespace, directory: Path) -> dict[str, object]:
    """Fill, project, count."""
    valkey, mariadb = Valkey(directory / "valkey"), MariaDB(directory / "mariadb")
    await asyncio.gather(valkey.start(), mariadb.start())
    try:
        await asyncio.to_thread(schema.migrate, mariadb.url)
        redis = connection.connect(valkey.url)
        keys = LogKeys("bench", PARTITIONS)
        incarnations = {stream.stream: "1.bench" for stream in keys.streams}
        for stream in keys.streams:
            await redis.hset(stream.meta, mapping={"incarnation": "1.bench"})
        identity = LogIdentity(log_id="bench", partitions=PARTITIONS, incarnations=incarnations)
        events = await fill(redis, keys, options.messages, options.window)
        only = set(options.only.split(",")) if options.only else set(catalog.names())
        result = await project(options, redis, keys, identity, mariadb, valkey, events, only)
        await redis.aclose()
        return result
    finally:
        await asyncio.gather(valkey.stop(), mariadb.stop())


async def project(options, redis, keys, identity, mariadb, valkey, events, only) -> dict[str, object]:  # noqa: PLR0917
    """Run the projector until it applied `events` events with every projection."""
    projector = Projector(
        Settings(projector_metrics_port=0, projector_batch=options.batch),
        redis=redis,
        keys=keys,
        identity=identity,
        store=Store(mariadb.url),
        projections=[each for each in catalog.projections() if each.name in only],
    )
    # As a role does it; what filled the log and migrated the database is none of the projector's.
    calm_collector()
    stop = asyncio.Event()
    pids = {"projector": os.getpid(), "mariadb": mariadb.pid, "valkey": valkey.pid}
    before = {name: cpu(pid) for name, pid in pids.items()}
    started = time.perf_counter()
    task = asyncio.create_task(projector.run(stop))
    statuses = [runner.status for runner in projector.runners if runner.stream.isdigit()]
    while not all(
        sum(status.projection(name).events for status in statuses) >= events
        for name in only - {"clients", "users"}
    ):
        await asyncio.sleep(0.005)
        if task.done():
            task.result()
    seconds = time.perf_counter() - started
    used = {name: cpu(pid) - before[name] for name, pid in pids.items()}
    stop.set()
    await task
    return {
        "projections": sorted(only),
        "events": events,
        "seconds": round(seconds, 2),
        "events_per_second": round(events / seconds),
        "cpu_microseconds_per_event": {name: round(one / events * 1e6, 1) for name, one in used.items()},
        "events_per_cpu_second": round(events / sum(used.values())),
        "projector_rss_mb": round(psutil.Process().memory_info().rss / 2**20),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--messages", type=int, default=40_000)
    parser.add_argument("--window", type=int, default=500, help="messages between a submit and its outcome")
    parser.add_argument("--batch", type=int, default=2000, help="events a transaction")
    parser.add_argument("--only", default="", help="projections, by comma; all without it")
    options = parser.parse_args()
    configure("bench", "warning")
    with tempfile.TemporaryDirectory() as directory:
        result = uvloop.run(measure(options, Path(directory)))
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
