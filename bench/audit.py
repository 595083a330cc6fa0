"""Events a second exported and verified: a history of delivered messages, archived, vouched for by digests.

    .venv/bin/python bench/audit.py [--messages 60000]

An own Valkey is filled and archived first. Each step then runs alone: signing digests of everything,
exporting everything to JSON lines and to CSV, exporting what concerns one client with proofs, verifying each
file with the stand-alone verifier, and with its plain Python alone. CPU is this process'; memory is its
growth at the largest. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import uvloop
from project import PARTITIONS, cpu, fill

from broker.embedded.valkey import Valkey
from broker.events import connection, exported_formats, exported_verifier
from broker.events.archive.archiver import Archiver, Limits
from broker.events.archive.storage import LocalStorage
from broker.events.archive.store import StreamArchive
from broker.events.exported_file import digest_line
from broker.events.exported_session import Exports
from broker.events.exported_walk import Filter
from broker.events.feed import Feed
from broker.events.keyring import Keyring
from broker.events.keys import ARCHIVE_GROUP, LogKeys
from broker.events.log_identity import LogIdentity
from broker.settings import Settings
from broker.telemetry import configure

SEGMENT_BYTES = 4 * 2**20


@contextmanager
def measured(events: int, found: dict[str, object], name: str):
    """Rate, CPU and growth of memory of a step over so many events."""
    process = psutil.Process()
    before, started, used = process.memory_info().rss, time.perf_counter(), cpu(process.pid)
    largest, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            largest.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield
    done.set()
    watcher.join()
    seconds, spent = time.perf_counter() - started, cpu(process.pid) - used
    found[name] = {
        "events": events,
        "events_per_second": round(events / seconds),
        "events_per_cpu_second": round(events / max(spent, 1e-9)),
        "memory_growth_mib": round((max(largest) - before) / 2**20),
    }


async def archive(redis, keys: LogKeys, identity: LogIdentity, where: LocalStorage) -> None:
    """Seal everything that the partitions hold."""
    limits = Limits(SEGMENT_BYTES, 0.2, poll=0.05)
    stop = asyncio.Event()
    archivers = [
        Archiver(
            Feed(redis, stream, "1.bench", "bench", 30.0, group=ARCHIVE_GROUP, lease=stream.archive_lease),
            StreamArchive(where, identity.log_id, stream.stream),
            limits,
        )
        for stream in keys.partitions
    ]
    tasks = [asyncio.create_task(each.run(stop)) for each in archivers]
    while not all(each.status.sealed is not None and each.status.lag_events == 0 for each in archivers):
        await asyncio.sleep(0.05)
    stop.set()
    await asyncio.gather(*tasks)


async def export(exports: Exports, wanted: Filter, form: str, path: Path) -> int:
    """Into a file; how many lines."""
    begun = await exports.begin(wanted, form, actor="system")
    made = exported_formats.named(form)
    count = 0
    with path.open("wb") as file:
        file.write(made.head())
        async for block in begun.walk.lines():
            file.write(made.encode(block))
            count += len(block)
    lines = [digest_line(one) for one in begun.signed]
    path.with_suffix(".digests").write_bytes(b"\n".join(lines))
    return count


async def measure(options: argparse.Namespace, directory: Path) -> dict[str, object]:
    """Fill, sign, export, verify."""
    valkey = Valkey(directory / "valkey", maxmemory_mb=1024)
    await valkey.start()
    try:
        redis = connection.connect(valkey.url)
        keys = LogKeys("bench", PARTITIONS)
        for stream in keys.streams:
            await redis.hset(stream.meta, mapping={"incarnation": "1.bench"})
        identity = LogIdentity("bench", PARTITIONS, {stream.stream: "1.bench" for stream in keys.streams})
        events = await fill(redis, keys, options.messages, 500)
        settings = Settings(data_dir=directory, certs_dir=directory / "certs")
        await archive(redis, keys, identity, LocalStorage(directory / "archive"))
        exports = Exports.of(settings, redis, keys, identity, Keyring.create(directory / "keys" / "keyring"))
        found: dict[str, object] = {}
        with measured(events, found, "digests"):
            await exports.digester.make()
        for name, wanted, form in (
            ("jsonl", Filter(), "jsonl"),
            ("csv", Filter(), "csv"),
            ("filtered", Filter(client_id="client-7"), "jsonl"),
        ):
            path = directory / f"{name}.{form}"
            # A filtered export is measured by what it looks through.
            with measured(events, found, f"export_{name}"):
                count = await export(exports, wanted, form, path)
            keyed = [exports.digester._key.public]  # noqa: SLF001 - as an auditor has it
            given = [json.loads(line) for line in path.with_suffix(".digests").read_bytes().splitlines()]
            with measured(count, found, f"verify_{name}"):
                report = exported_verifier.verify(str(path), given, keyed)
            assert report["events"] == count
        await redis.aclose()
        found["verify_plain_python"] = plain(directory)
        return found
    finally:
        await valkey.stop()


def plain(directory: Path) -> dict[str, object]:
    """The script by itself, without the packages that make it faster."""
    command = [sys.executable, "-ISB", exported_verifier.__file__, str(directory / "jsonl.jsonl")]
    command += [
        "--digests",
        str(directory / "jsonl.digests"),
        "--key",
        str(directory / "certs" / "digests.pub"),
    ]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    events = int(done.stdout.split()[1])
    return {"events": events, "events_per_second": round(events / seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--messages", type=int, default=60_000)
    options = parser.parse_args()
    configure("bench", "warning")
    with tempfile.TemporaryDirectory() as directory:
        result = uvloop.run(measure(options, Path(directory)))
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
