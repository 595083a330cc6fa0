"""The runner against a real Redis and MySQL."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

from broker.events.feed import Feed
from broker.events.keys import StreamKeys
from broker.projections.audit_log import AuditLog
from broker.projections.messages import Messages
from broker.projections.runner import StreamRunner
from broker.projections.store import Store
from support import histories, log
from support.waiting import wait_until


@asynccontextmanager
async def running(*runners: StreamRunner):
    stop = asyncio.Event()
    tasks = [asyncio.create_task(runner.run(stop)) for runner in runners]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)


def runner(
    redis, keys: StreamKeys, identity, store: Store, *, owner: str = "p1", batch: int = 100, projections=None
):
    feed = Feed(redis, keys, identity.incarnations[keys.stream], owner, ttl=1.0)
    return StreamRunner(feed, store, projections or [Messages(), AuditLog()], batch)


async def test_events_become_rows(redis, log_name, store):
    """Messages submitted, tried and delivered are delivered rows, and every event is in the audit log."""
    keys, identity = await log.create(redis, log_name)
    facts = histories.happy(500)
    positions = await histories.append(redis, keys.partitions[0], facts)
    one = runner(redis, keys.partitions[0], identity, store)
    async with running(one):
        await wait_until(
            lambda: one.checkpoints() and all(c.position == positions[-1] for c in one.checkpoints().values())
        )
    rows = await store.select("SELECT status, count(*) n, min(attempt_count) a FROM messages GROUP BY status")
    assert rows == [{"status": "delivered", "n": 500, "a": 1}]
    assert (await store.select("SELECT count(*) n FROM audit_log"))[0]["n"] == len(facts)
