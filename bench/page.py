"""Readers paging through one client's messages: how long a page takes, wherever it lies.

    .venv/bin/python bench/page.py [--messages 1000000] [--readers 10] [--pages 100]

An own MariaDB is filled first. Each reader opens the list, then walks by cursor from random depths. What is
timed is what the API asks of the database for a page: the rows, the ciphertexts (for masked numbers), and the
total of a first page. Prints one JSON object with the plans of the statements.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from broker.domain import ids
from broker.embedded.mariadb import MariaDB
from broker.projections import listing, schema, sql
from broker.projections.listing import Cursor, Filter
from broker.projections.queries import Queries
from broker.projections.store import Store

CLIENT = "demo"
START_MS = 1_795_311_000_000
STEP_MS = 100
CHUNK = 20_000
SEALED = b"\x01" * 160
NUMBER = b"n" * 32
COLUMNS = ("message_id", "client_id", "sender_number_hashed", "encrypted_body", "status", "queued_at",
           "stream", "submitted_ms", "submitted_seq", "changed_ms", "changed_seq")  # fmt: skip
FILTERS = {
    "all": Filter((CLIENT,)),
    "failed": Filter((CLIENT,), "failed"),
    "number": Filter((CLIENT,), number_hashes=(NUMBER,)),
    "everybody's": Filter(None),
}


def key(at: int) -> bytes:
    """A UUIDv7 of that time."""
    return at.to_bytes(6, "big") + b"\x70\x00\x80" + random.randbytes(6) + b"\x00"


async def fill(store: Store, messages: int) -> None:
    """Messages of one client and one number, a tenth of a second apart; one in a hundred failed."""
    for first in range(0, messages, CHUNK):
        rows = []
        for number in range(first, min(first + CHUNK, messages)):
            at = START_MS + number * STEP_MS
            status = "failed" if number % 100 == 0 else "delivered"
            rows.append(
                f"('{ids.text(key(at))}','{CLIENT}','{NUMBER.hex()}',x'{SEALED.hex()}','{status}',"
                f"{sql.stamp(at)},'0',{at},0,{at},0)"
            )
        async with store.transaction() as transaction:
            await transaction.apply([sql.Insert("messages", COLUMNS, rows)])
    await store.select("ANALYZE TABLE messages")


async def reader(store: Store, wanted: Filter, messages: int, pages: int, took: list[float]) -> None:
    """Pages by cursor, from somewhere."""
    at: int | Cursor = 1
    for _ in range(pages):
        began = time.perf_counter()
        page = await listing.page(store, wanted, per_page=50, at=at)
        await listing.sealed(store, [each.message_id for each in page.messages])
        took.append(time.perf_counter() - began)
        at = page.next or 1
        if random.random() < 0.1:
            place = START_MS + random.randrange(messages) * STEP_MS
            at = Cursor(place, key(place), 2, page.total)


async def plan(store: Store, wanted: Filter) -> list[str]:
    """EXPLAIN of a page deep inside, a line a table."""
    branches = listing._branches(wanted)  # noqa: SLF001
    lines = []
    for statement, args in (
        listing.page_query(wanted, branches, Cursor(START_MS + 1000, key(START_MS), 2, 0), 51),
        listing.count_query(wanted, branches),
    ):
        lines += [
            " ".join(str(row[name]) for name in ("table", "type", "key", "rows", "Extra"))
            for row in await store.select(f"EXPLAIN {statement}", args)
        ]
    return lines


async def run(directory: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Fill, then measure each filter."""
    mariadb = MariaDB(directory)
    await mariadb.start()
    try:
        await asyncio.to_thread(schema.migrate, mariadb.url)
        queries = Queries(mariadb.url, pool=args.readers)
        began = time.perf_counter()
        filler = Store(mariadb.url, pool=1)
        await fill(filler, args.messages)
        await filler.close()
        found: dict[str, Any] = {
            "messages": args.messages,
            "fill_seconds": round(time.perf_counter() - began),
        }
        for name, wanted in FILTERS.items():
            took: list[float] = []
            readers = [
                reader(queries.store, wanted, args.messages, args.pages, took) for _ in range(args.readers)
            ]
            await asyncio.gather(*readers)
            took.sort()
            shares = {f"p{share}_ms": took[len(took) * share // 100] * 1000 for share in (50, 95, 99)}
            found[name] = {share: round(value, 1) for share, value in shares.items()}
            found[name]["plan"] = await plan(queries.store, wanted)
        await queries.close()
        return found
    finally:
        await mariadb.stop()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--readers", type=int, default=10)
    parser.add_argument("--pages", type=int, default=100)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        json.dump(uvloop.run(run(Path(directory), args)), sys.stdout, indent=2)
        sys.stdout.write("\n")


if __name__ == "__main__":
    main()
