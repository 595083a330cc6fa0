"""Events a second of a rebuild: an archived history, folded into MySQL by `projection rebuild`'s own code.

    .venv/bin/python bench/replay.py [--events 100000] [--only messages,audit_log]

An own MariaDB (flushed at every commit) is started. The history, submit, attempt and delivery of each message
over four partitions, is sealed into an archive first; the clock runs over each rebuild by itself. `clients`
and `users` are rebuilt from a control stream of their own, of as many events, at most 100,000. Several sizes,
as in `--events 100000,1000000`, show whether it is linear. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import uvloop

from broker import clock
from broker.domain import ids
from broker.embedded.mariadb import MariaDB
from broker.events import codec, envelope, types
from broker.events.archive.segments import GENESIS, Manifest, Segment
from broker.events.archive.storage import LocalStorage
from broker.events.archive.store import StreamArchive
from broker.events.codec import Stored
from broker.events.positions import CONTROL, Position
from broker.projections import catalog, schema
from broker.projections.rebuild.run import Rebuild, named
from broker.projections.rebuild.sources import ArchiveSource
from broker.projections.store import Store
from broker.telemetry import configure

PARTITIONS = 4
MOST_CONTROL = 100_000
"""A control stream does not grow with the messages."""
SEALED_BYTES = 160
CLIENTS = 20
WINDOW = 500
SEGMENT = 60_000
START_MS = 1_795_311_781_000


def stored(stream: str, number: int, subject: bytes, event: types.Event, actor: str) -> Stored:
    """The event as it would lie in the log, fifty to a millisecond."""
    position = Position(stream, START_MS + number // 50, number % 50)
    header = envelope.encode(position.ms, actor)
    return Stored(position, codec.tag_of(event), subject, header, codec.encode(event))


def history(partition: int, messages: int) -> list[Stored]:
    """Submit, attempt and delivery of `messages` messages; the outcome comes WINDOW messages later."""
    found: list[Stored] = []
    waiting: list[tuple[bytes, str]] = []
    stream = str(partition)

    def add(subject: bytes, event: types.Event, actor: str) -> None:
        found.append(stored(stream, len(found), subject, event, actor))

    def outcome() -> None:
        subject, client = waiting.pop(0)
        add(subject, types.DeliveryAttempted(client, 1, 1, "inbox", True, 12, 200), "worker:w1")
        add(subject, types.Delivered(client, 1, 1), "worker:w1")

    for number in range(messages):
        client, subject = f"client-{number % CLIENTS}", ids.new(partition)
        sealed = types.MessageSubmitted(client, os.urandom(SEALED_BYTES), os.urandom(32), os.urandom(32))
        add(subject, sealed, f"client:{client}")
        waiting.append((subject, client))
        if len(waiting) > WINDOW:
            outcome()
    while waiting:
        outcome()
    return found


def administration(events: int) -> list[Stored]:
    """Clients with a certificate each, users whose role changes: the control stream of many of them."""
    found: list[Stored] = []
    for number in range(events // 4):
        client, user, fingerprint = f"client-{number}", f"user-{number}", f"{number:064x}"
        until = START_MS + 365 * 86_400_000
        issued = types.CertIssued(fingerprint, f"{number:x}", client, "producer", START_MS, until)
        created = types.UserCreated(user, f"{number}@example.com", "user", "$2b$12$" + "x" * 53, [client])
        for subject, event in (
            (f"client:{client}", types.ClientRegistered(client)),
            (f"cert:{fingerprint}", issued),
            (f"user:{user}", created),
            (f"user:{user}", types.UserRoleChanged(user, "auditor")),
        ):
            found.append(stored(CONTROL, len(found), subject.encode(), event, "user:admin"))
    return found


def archive(storage: LocalStorage, log_id: str, name: str, events: list[Stored]) -> None:
    """Seal the history of one stream."""
    stream = StreamArchive(storage, log_id, name)
    previous = GENESIS
    for number, first in enumerate(range(0, len(events), SEGMENT), 1):
        part = events[first : first + SEGMENT]
        segment = Segment(stream.stream)
        segment.add(part)
        content, digest = segment.pack()
        manifest = Manifest(
            log_id=log_id,
            stream=stream.stream,
            incarnation="1.bench",
            number=number,
            epoch=1,
            first=part[0].position.entry_id,
            last=part[-1].position.entry_id,
            count=len(part),
            events=first + len(part),
            plain_bytes=segment.size,
            bytes=len(content),
            sha256=digest,
            previous=previous,
            sealed_at=clock.iso(clock.now_ms()),
        )
        stream.put_segment(manifest, content)
        stream.put_manifest(manifest)
        previous = digest


async def replay(mariadb: MariaDB, storage: LocalStorage, events: int, names: list[str]) -> dict[str, Any]:
    """Seal `events` events and rebuild each read model from them."""
    log_id = f"bench-{events}"
    for partition in range(PARTITIONS):
        archive(storage, log_id, str(partition), history(partition, events // 3 // PARTITIONS))
    archive(storage, f"{log_id}-control", CONTROL, administration(min(events, MOST_CONTROL)))
    messages, control = ArchiveSource(storage, log_id), ArchiveSource(storage, f"{log_id}-control")
    store = Store(mariadb.url, pool=PARTITIONS + 4)
    found: dict[str, Any] = {}
    for name in names:
        projection = named(name)
        if projection is None:
            raise SystemExit(f"There is no projection {name}.")
        before = cpu(mariadb.pid)
        source = messages if projection.wants("0") else control
        result = await Rebuild(store, source, projection).run()
        found[name] = {
            "events": result.events,
            "seconds": round(result.seconds, 2),
            "events_per_second": round(result.events / result.seconds),
            "database_cpu_microseconds_per_event": round(
                (cpu(mariadb.pid) - before) / result.events * 1e6, 1
            ),
        }
    # The next size starts from nothing again.
    await store.execute("DELETE FROM checkpoints")
    await store.close()
    return found


def cpu(pid: int) -> float:
    """Seconds of CPU that a process used so far."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


async def measure(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Each number of events in turn."""
    mariadb = MariaDB(directory / "mariadb")
    await mariadb.start()
    try:
        await asyncio.to_thread(schema.migrate, mariadb.url)
        names = options.only.split(",") if options.only else catalog.names()
        storage = LocalStorage(directory / "archive")
        return {str(size): await replay(mariadb, storage, size, names) for size in options.events}
    finally:
        await mariadb.stop()


def sizes(value: str) -> list[int]:
    """Numbers of events, by comma."""
    return [int(each) for each in value.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--events", type=sizes, default=[100_000], help="how many, by comma")
    parser.add_argument("--only", default="", help="projections, by comma; all without it")
    options = parser.parse_args()
    configure("bench", "warning")
    with tempfile.TemporaryDirectory() as directory:
        result = uvloop.run(measure(options, Path(directory)))
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
