"""Runners under test, and the tables they leave."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import asynccontextmanager
from typing import Any

from broker.events.feed import Feed
from broker.events.keys import StreamKeys
from broker.events.log_identity import LogIdentity
from broker.events.positions import Position
from broker.projections import base, catalog
from broker.projections.base import Projection
from broker.projections.runner import StreamRunner
from broker.projections.store import Store
from support import databases
from support.histories import Fact

TABLES = {
    "messages": "message_id",
    "attempts": "message_id,ms,seq",
    "audit_log": "stream,ms,seq",
    "clients": "client_id",
    "certificates": "fingerprint",
    "users": "user_id",
    "statistics": "stream,hour,client_id",
    "latencies": "stream,hour,bucket",
}


def runner(
    redis: Any,
    keys: StreamKeys,
    identity: LogIdentity,
    store: Store,
    *,
    owner: str = "p1",
    batch: int = 100,
    ttl: float = 1.0,
    projections: Sequence[Projection] | None = None,
) -> StreamRunner:
    """A runner of all projections, or of these."""
    feed = Feed(redis, keys, identity.incarnations[keys.stream], owner, ttl)
    return StreamRunner(feed, store, projections or catalog.projections(), batch)


@asynccontextmanager
async def running(*runners: StreamRunner):
    """The runners at work; stopped, and their errors raised, at the end."""
    stop = asyncio.Event()
    tasks = [asyncio.create_task(each.run(stop)) for each in runners]
    try:
        yield tasks
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def reached(store: Store, position: Position, among: Sequence[str] | None = None) -> bool:
    """Whether every projection (or these) has applied the event at `position`, durably."""
    wanted = among or [each.name for each in catalog.projections() if each.wants(position.stream)]
    rows = await store.select("SELECT * FROM checkpoints WHERE stream=%s", (position.stream,))
    at = {row["projection"]: (row["ms"], row["seq"]) for row in rows}
    return all(at.get(name, (0, 0)) >= (position.ms, position.seq) for name in wanted)


async def tables(store: Store) -> dict[str, list[dict[str, Any]]]:
    """Every row of every read model, in order; and how far they are."""
    found = {
        name: await store.select(f"SELECT * FROM {name} ORDER BY {order}") for name, order in TABLES.items()
    }
    found["checkpoints"] = await store.select(
        "SELECT projection,stream,ms,seq,events,state,halted FROM checkpoints ORDER BY projection,stream"
    )
    return found


def rows(url: str) -> dict[str, Any]:
    """Every row of every read model of the database at `url`."""
    found: dict[str, Any] = {}
    with databases.connected(url) as link, link.cursor() as cursor:
        for table, order in TABLES.items():
            cursor.execute(f"SELECT * FROM {table} ORDER BY {order}")
            found[table] = cursor.fetchall()
    return found


async def count(store: Store, table: str) -> int:
    return (await store.select(f"SELECT COUNT(*) AS n FROM {table}"))[0]["n"]


def items(facts: Sequence[Fact], positions: Sequence[Position]) -> list[base.Entry]:
    """Facts decoded as a runner would."""
    return [base.decode(fact.stored(at)) for fact, at in zip(facts, positions, strict=True)]
