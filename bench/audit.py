"""Events a second exported and verified: a history of delivered messages, archived, vouched for by digests.

    .venv/bin/python bench/audit.py [--messages 60000]
    .venv/bin/python bench/audit.py --made-up 1000000 [--forms jsonl,parquet]

An own Valkey is filled and archived first. Each step then runs alone: signing digests of everything,
exporting everything to JSON lines, CSV and Parquet, exporting what concerns one client with proofs, verifying
each file with the stand-alone verifier: in one process, on all cores, and with its plain Python alone. With
`--made-up` there is no server: so many events are made up as they are read, to show that memory does not
grow with them. CPU is this process' and its helpers'; memory is its growth at the largest. Prints one JSON
object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import contextmanager
from pathlib import Path

import psutil
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from project import PARTITIONS, fill

from broker.embedded.valkey import Valkey
from broker.events import (
    chain,
    codec,
    connection,
    digests,
    envelope,
    exported_formats,
    exported_verifier,
    merkle,
    types,
)
from broker.events.archive.archiver import Archiver, Limits
from broker.events.archive.storage import LocalStorage
from broker.events.archive.store import StreamArchive
from broker.events.codec import Stored
from broker.events.digests import Digest, Signed, StreamDigest
from broker.events.exported_file import digest_line
from broker.events.exported_session import Exports
from broker.events.exported_source import Linked, linked
from broker.events.exported_walk import Filter, Walk
from broker.events.feed import Feed
from broker.events.keyring import Keyring
from broker.events.keys import ARCHIVE_GROUP, LogKeys
from broker.events.log_identity import LogIdentity
from broker.events.positions import Position, start
from broker.lifecycle import calm_collector
from broker.settings import Settings
from broker.telemetry import configure

SEGMENT_BYTES = 4 * 2**20
BLOCK = 2000
START_MS = 1_795_311_781_000


def spent() -> float:
    """Seconds of CPU of this process and those that it started and that ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@contextmanager
def measured(events: int, found: dict[str, object], name: str):
    """Rate, CPU and growth of memory of a step over so many events."""
    process = psutil.Process()
    before, started, used = process.memory_info().rss, time.perf_counter(), spent()
    largest, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            largest.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield
    done.set()
    watcher.join()
    seconds, seconds_of_cpu = time.perf_counter() - started, spent() - used
    found[name] = {
        "events": events,
        "events_per_second": round(events / seconds),
        "events_per_cpu_second": round(events / max(seconds_of_cpu, 1e-9)),
        "memory_growth_mib": round((max(largest) - before) / 2**20),
        "memory_mib": round(max(largest) / 2**20),
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


async def export(walk: Walk, signed: list[Signed], form: str, path: Path) -> int:
    """Into a file; how many lines."""
    made = exported_formats.named(form)
    count = 0
    with path.open("wb") as file:
        file.write(made.head())
        async for block in walk.lines():
            file.write(made.encode(block))
            count += len(block)
        file.write(made.end())
    path.with_suffix(".digests").write_bytes(b"\n".join(map(digest_line, signed)))
    return count


def verify(path: Path, key: bytes, count: int, found: dict[str, object], *, processes: int) -> None:
    """By one process, or on all cores (0)."""
    given = [json.loads(line) for line in path.with_suffix(".digests").read_bytes().splitlines()]
    name = f"verify_{path.stem}" + ("" if processes else "_all_cores")
    with measured(count, found, name):
        report = exported_verifier.verify(str(path), given, [key], processes=processes)
    assert report["events"] == count


class MadeUp:
    """A history of so many events, made up as it is read; the same each time."""

    streams = tuple(map(str, range(PARTITIONS)))

    def __init__(self, events: int) -> None:
        self._events = events // PARTITIONS
        self._bytes = random.Random(1).randbytes(1 << 20)
        self._attempted = types.DeliveryAttempted("client-7", 1, 1, "inbox", succeeded=True, latency_ms=12)

    async def blocks(self, stream: str, after: Position) -> AsyncGenerator[list[Stored]]:
        """As in Source."""
        first = (after.ms - START_MS) * 10 + after.seq + 1 if after.ms else 0
        for place in range(first, self._events, BLOCK):
            yield [self._event(stream, at) for at in range(place, min(place + BLOCK, self._events))]

    def _event(self, stream: str, at: int) -> Stored:
        number, step = divmod(at, 3)
        place = number * 61 % (len(self._bytes) - 300)
        subject = number.to_bytes(15, "big") + bytes((int(stream),))
        event: types.Event = types.Delivered("client-7", 1, 1) if step == 2 else self._attempted
        if step == 0:
            sealed, hashed = self._bytes[place : place + 160], self._bytes[place + 160 : place + 192]
            event = types.MessageSubmitted("client-7", sealed, hashed, hashed)
        said = envelope.encode(START_MS + at // 10, "worker:w1", None)
        position = Position(stream, START_MS + at // 10, at % 10)
        return Stored(position, codec.tag_of(event), subject, said, codec.encode(event))


async def sign(source: MadeUp, key: Ed25519PrivateKey) -> list[Signed]:
    """Digests of a whole made-up history, each adding as much as one may."""
    states: dict[str, list[StreamDigest]] = {}
    for stream in source.streams:
        known, hashes, events = [], list[bytes](), 0
        async for block in linked(source, stream, start(stream), chain.GENESIS):
            for one in block:
                hashes.append(one.hash)
                if len(hashes) == digests.MAX_COVERED:
                    events += len(hashes)
                    known.append(state(one, events, hashes))
                    hashes = []
        if hashes:
            known.append(state(block[-1], events + len(hashes), hashes))
        states[stream] = known
    signed, previous = list[Signed](), digests.GENESIS
    public = key.public_key().public_bytes_raw().hex()
    for number in range(1, max(map(len, states.values())) + 1):
        streams = {stream: known[min(number, len(known)) - 1] for stream, known in states.items()}
        body = digests.encode(
            Digest(log_id="made-up", number=number, previous=previous, at="", key=public, streams=streams)
        )
        signed.append(Signed(number, body, key.sign(body.encode())))
        previous = signed[-1].hash
    return signed


def state(last: Linked, events: int, hashes: list[bytes]) -> StreamDigest:
    """A stream up to an event."""
    root = merkle.Tree(hashes).root.hex()
    return StreamDigest(last.stored.position.entry_id, events, last.hash.hex(), len(hashes), root)


async def made_up(options: argparse.Namespace, directory: Path) -> dict[str, object]:
    """Sign, export and verify a made-up history; each file is removed before the next."""
    source, key = MadeUp(options.made_up), Ed25519PrivateKey.generate()
    found: dict[str, object] = {}
    events = options.made_up // PARTITIONS * PARTITIONS
    with measured(events, found, "digests"):
        signed = await sign(source, key)
    for form in options.forms.split(","):
        path = directory / f"{form}.{form}"
        with measured(events, found, f"export_{form}"):
            count = await export(Walk(source, digests.chained(signed)), signed, form, path)
        for processes in (1, 0):
            verify(path, key.public_key().public_bytes_raw(), count, found, processes=processes)
        path.unlink()
    return found


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
            ("parquet", Filter(), "parquet"),
            ("filtered", Filter(client_id="client-7"), "jsonl"),
        ):
            path = directory / f"{name}.{form}"
            # A filtered export is measured by what it looks through.
            with measured(events, found, f"export_{name}"):
                begun = await exports.begin(wanted, form, actor="system")
                count = await export(begun.walk, begun.signed, form, path)
            key = exports.digester._key.public  # noqa: SLF001 - as an auditor has it
            for processes in (1, 0):
                verify(path, key, count, found, processes=processes)
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
    parser.add_argument("--made-up", type=int, metavar="EVENTS", help="made up as they are read, no servers")
    parser.add_argument("--forms", default=",".join(exported_formats.FORMATS), help="of what is made up")
    options = parser.parse_args()
    configure("bench", "warning")
    calm_collector()
    with tempfile.TemporaryDirectory() as directory:
        steps = made_up if options.made_up else measure
        result = uvloop.run(steps(options, Path(directory)))
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
