"""Redis' memory while messages pass through `up`, with archiving on and little history kept at hand.

python bench/soak.py [--messages 1000000] [--seconds 150] [--chunk 10000] [--history 5]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

import e2e

from broker.embedded import urls
from broker.events import connection, inspection
from broker.events.keys import LogKeys
from broker.settings import load


async def look(directory: Path) -> dict[str, int]:
    """Bytes in use by now: by all of Redis, by its streams and outcomes; events in the streams."""
    settings = load(environ={}, data_dir=directory)
    client = connection.connect(urls.valkey(settings).url)
    try:
        keys = LogKeys(settings.log_name, await inspection.partitions(client, settings.log_name))
        streams = await inspection.streams(client, keys)
        outcomes = 0
        async for key in client.scan_iter("*:done:*"):
            outcomes += await client.memory_usage(key)
        return {
            "used": int((await client.info("memory"))["used_memory"]),
            "streams": sum(one.memory_bytes or 0 for one in streams),
            "outcomes": outcomes,
            "events": sum(one.length for one in streams),
            "added": sum(one.added for one in streams),
        }
    finally:
        await client.aclose()


def pass_through(system: e2e.Watched, link, args: argparse.Namespace) -> list[dict]:
    """Send chunk after chunk, each once the one before the last is in the tables; a look after each."""
    samples: list[dict] = []
    sent, ends = 0, time.time() + args.seconds
    while sent < args.messages and time.time() < ends:
        sender = system.sender("--messages", str(args.chunk), "--batch", "500", "--connections", "4")
        sent += args.chunk
        if set(system.said(sender)["statuses"]) != {"202"}:
            raise SystemExit("not every message was accepted")
        while e2e.number(link, e2e.DELIVERED) < sent - args.chunk:
            time.sleep(0.02)
        samples.append({"sent": sent, "at": round(time.time(), 1)} | asyncio.run(look(system.directory)))
    while e2e.number(link, e2e.DELIVERED) < sent:
        time.sleep(0.05)
    # The last look was while its chunk was under way.
    samples[-1]["added"] = asyncio.run(look(system.directory))["added"]
    return samples


def report(samples: list[dict], system: e2e.Watched) -> dict:
    """The second quarter of the run against the last: growth that goes on shows as a ratio above 1."""
    quarter = max(1, len(samples) // 4)
    early, late = samples[quarter : 2 * quarter] or samples[:1], samples[-quarter:]

    def middle(part: list[dict], name: str) -> float:
        return statistics.median(one[name] for one in part)

    segments = (system.directory / "archive").rglob("*.zst")
    first, last = samples[0], samples[-1]
    passed = last["sent"] - first["sent"]
    rest = [one["used"] - one["streams"] for one in (first, last)]
    return {
        "messages": last["sent"],
        "events": last["added"],
        "messages_per_second": round(passed / max(0.1, last["at"] - first["at"])),
        "streams_mib": {"early": round(middle(early, "streams") / 2**20, 1),
                        "late": round(middle(late, "streams") / 2**20, 1)},
        "streams_late_to_early": round(middle(late, "streams") / middle(early, "streams"), 3),
        "events_in_redis": {"early": round(middle(early, "events")), "late": round(middle(late, "events"))},
        "used_mib": {"early": round(middle(early, "used") / 2**20, 1),
                     "late": round(middle(late, "used") / 2**20, 1)},
        "used_late_to_early": round(middle(late, "used") / middle(early, "used"), 3),
        "outcomes_mib": round(last["outcomes"] / 2**20, 1),
        "bytes_a_message_beside_streams": round((rest[1] - rest[0]) / passed) if passed else 0,
        "archive_mib": round(sum(path.stat().st_size for path in segments) / 2**20, 1),
        "memory_mib": system.memory(),
    }  # fmt: skip


def measure(args: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        system = e2e.Watched(Path(name))
        system.environ |= {
            "BROKER_STREAM_HISTORY": str(args.history),
            "BROKER_ARCHIVE_SEGMENT_SECONDS": "2",
            # Days, otherwise: what is kept for a time has to come and go within the run.
            "BROKER_OUTCOMES_KEPT": "60",
        }
        system.broker("up", "--detach")
        try:
            link = system.connect()
            found = report(pass_through(system, link, args), system)
            while not any((system.directory / "archive").rglob("*.json")):
                time.sleep(0.1)
            # It ends with an error where a hash is wrong.
            system.broker("archive", "verify")
            return found
        finally:
            system.broker("down")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000, help="at most so many")
    parser.add_argument("--seconds", type=float, default=150, help="and sent for no longer than this")
    parser.add_argument("--chunk", type=int, default=10_000, help="messages under way at once, about")
    parser.add_argument("--history", type=float, default=5, help="seconds of history that Redis keeps")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    print(json.dumps(measure(args), indent=None if args.json else 2))


if __name__ == "__main__":
    main()
