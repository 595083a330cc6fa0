"""Fenced delivery commits a second: one worker process, simulated recipients without delay, decrypting.

    .venv/bin/python bench/deliver.py [--messages 50000] [--concurrency 1024] [--profile]

An own Valkey (`appendfsync always`) is filled first; the clock runs from the start of the worker to the last
outcome.
Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import os
import pstats
import resource
import sys
import tempfile
import time
from pathlib import Path

from broker import clock
from broker.domain import ids
from broker.embedded.valkey import Valkey
from broker.events import connection
from broker.events.appender import Appender, Draft
from broker.events.keyring import Keyring
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.events.sealing import ClientKeys, Sealer
from broker.events.types import MessageSubmitted
from broker.services.delivery.channels.simulated import Simulated
from broker.services.delivery.role import limits
from broker.services.delivery.worker import Worker
from broker.settings import Settings
from broker.telemetry import configure

GROUP = 500
NUMBER = "+4915200000000"


class Registry:
    """One client on the default route."""

    def client(self, client_id: str) -> None:
        """No entry: the default channel."""


async def create(redis, partitions: int) -> tuple[LogKeys, LogIdentity]:
    """A fresh log."""
    keys = LogKeys("bench", partitions)
    incarnations = {stream.stream: "1.bench" for stream in keys.streams}
    for stream in keys.streams:
        await redis.hset(stream.meta, mapping={"incarnation": "1.bench"})
    return keys, LogIdentity(log_id="bench", partitions=partitions, incarnations=incarnations)


async def fill(redis, keys: LogKeys, identity: LogIdentity, sealer: Sealer, count: int) -> None:
    """Append `count` encrypted messages of 160 characters, spread over the partitions."""
    appender = Appender(redis, keys, identity)
    for start in range(0, count, GROUP):
        partition = (start // GROUP) % len(keys.partitions)
        drafts = []
        for _ in range(min(GROUP, count - start)):
            message_id = ids.new(partition)
            sealed = sealer.seal("demo", message_id, NUMBER, "x" * 160)
            event = MessageSubmitted("demo", sealed, sealer.number_hash("demo", NUMBER))
            drafts.append(
                Draft(message_id, "demo", event, "client:demo", clock.now_ms(), "c0ffee" + "0" * 26)
            )
        await appender.append(drafts)


async def open_messages(redis, keys: LogKeys) -> int:
    """Messages without an outcome."""
    return sum([await redis.hlen(partition.open) for partition in keys.partitions])


async def measure(options: argparse.Namespace, directory: Path) -> dict:
    """One run."""
    valkey = Valkey(directory / "valkey")
    await valkey.start()
    redis = connection.connect(valkey.url)
    try:
        keys, identity = await create(redis, options.partitions)
        keyring = Keyring.create(directory / "keys" / "keyring")
        client = ClientKeys.new("demo")
        sealer = Sealer(keyring, lambda _: client)
        await fill(redis, keys, identity, sealer, options.messages)
        worker = Worker(
            redis=redis,
            redis_url=valkey.url,
            keys=keys,
            identity=identity,
            clients=Registry(),
            opener=sealer,
            channels={"simulated": Simulated()},
            limits=limits(Settings(worker_concurrency=options.concurrency, default_channel="simulated")),
        )
        return await run(worker, redis, keys, options)
    finally:
        await redis.aclose()
        await valkey.stop()


async def server_cpu(redis) -> float:
    """Seconds of processor time that Valkey has used."""
    info = await redis.info("cpu")
    return info["used_cpu_user"] + info["used_cpu_sys"]


async def run(worker: Worker, redis, keys: LogKeys, options: argparse.Namespace) -> dict:
    """Deliver everything and count."""
    stop = asyncio.Event()
    profile = cProfile.Profile() if options.profile else None
    server_before = await server_cpu(redis)
    before, started = time.process_time(), time.perf_counter()
    task = asyncio.create_task(worker.run(stop))
    if profile:
        profile.enable()
    while await open_messages(redis, keys):
        await asyncio.sleep(0.01)
    seconds, cpu = time.perf_counter() - started, time.process_time() - before
    server = await server_cpu(redis) - server_before
    if profile:
        profile.disable()
        pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(45)
    stop.set()
    await task
    if options.profile:
        stats = await redis.info("commandstats")
        for name, one in sorted(stats.items(), key=lambda pair: -pair[1]["usec"])[:14]:
            print(name, one["calls"], f"{one['usec'] / 1e6:.2f} s", one["usec_per_call"], file=sys.stderr)
    outcomes = 0
    async for key in redis.scan_iter("*:done:*", count=1000):
        outcomes += await redis.hlen(key)
    assert outcomes == options.messages, outcomes
    return {
        "messages": options.messages,
        "seconds": round(seconds, 2),
        "commits_per_second": round(options.messages / seconds),
        "worker_cpu_us_per_message": round(cpu / options.messages * 1e6, 1),
        "valkey_cpu_us_per_message": round(server / options.messages * 1e6, 1),
        "worker_peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "concurrency": options.concurrency,
        "partitions": options.partitions,
        "cpus": os.cpu_count(),
        "load_before": os.getloadavg()[0],
    }


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--concurrency", type=int, default=1024)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    configure("bench", "warning")
    try:
        import uvloop

        runner = uvloop.run
    except ImportError:
        runner = asyncio.run
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        print(json.dumps(runner(measure(options, Path(directory)))))


if __name__ == "__main__":
    main()
