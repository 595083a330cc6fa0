"""The figures of the whole system, from the statistics that the projector keeps by the hour."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from broker import clock
from broker.events.connection import Redis
from broker.events.keys import LogKeys
from broker.projections import checkpoints, lag, sql, statistics
from broker.projections.lag import Lag
from broker.projections.store import Store

Period = Literal["hour", "day", "week", "month"]
HOURS: Final[Mapping[Period, int]] = {"hour": 1, "day": 24, "week": 7 * 24, "month": 30 * 24}


class Delivery(msgspec.Struct, frozen=True):
    """Milliseconds from submit to delivery in the first cycle; None without any (buckets of 19 %)."""

    p50: int | None
    p95: int | None
    p99: int | None


class Figures(msgspec.Struct, frozen=True):
    """Counted over whole hours of the log's clock, from `since` (milliseconds) on.

    That is the period and what of its first hour lies before it. `delivered` and `failed` are outcomes in
    that time, whenever the message came.
    """

    since: int
    total_messages: int
    delivered: int
    failed: int
    total_clients: int
    active_clients: int
    messages_last_24h: int
    delivery: Delivery


async def figures(store: Store, period: Period, now_ms: int | None = None) -> Figures:
    """The figures of the last hour, day, week (7 days) or month (30 days). Raises StoreUnavailable."""
    now = clock.now_ms() if now_ms is None else now_ms
    since = _hour(now - HOURS[period] * statistics.HOUR_MS)
    day = _hour(now - HOURS["day"] * statistics.HOUR_MS)
    counted = (await store.select(counts_query(since)))[0]
    lately = (await store.select(counts_query(day)))[0]
    clients = (await store.select("SELECT COUNT(*) AS n FROM clients WHERE status<>'erased'"))[0]
    latency = await store.select(latency_query(since))
    buckets = {int(row["bucket"]): int(row["n"]) for row in latency}
    return Figures(
        since=since,
        total_messages=_number(counted, "submitted"),
        delivered=_number(counted, "delivered"),
        failed=_number(counted, "failed"),
        total_clients=_number(clients, "n"),
        active_clients=_number(counted, "clients"),
        messages_last_24h=_number(lately, "submitted"),
        delivery=Delivery(*(statistics.percentile(buckets, share) for share in (0.5, 0.95, 0.99))),
    )


def counts_query(since: int) -> str:
    """Messages, outcomes and the clients that sent something, from this hour on."""
    return (
        "SELECT SUM(submitted) AS submitted,SUM(delivered) AS delivered,SUM(failed+discarded) AS failed,"
        "COUNT(DISTINCT CASE WHEN submitted>0 THEN client_id END) AS clients "
        f"FROM statistics FORCE INDEX (hour) WHERE hour>={sql.hour(since)}"
    )


def latency_query(since: int) -> str:
    """Deliveries by bucket, from this hour on."""
    return (
        "SELECT bucket,SUM(messages) AS n FROM latencies FORCE INDEX (hour) "
        f"WHERE hour>={sql.hour(since)} GROUP BY bucket"
    )


async def lags(store: Store, redis: Redis, keys: LogKeys) -> list[Lag]:
    """How far every projection is behind on every stream. Raises StoreUnavailable, LogUnavailable."""
    rows = await checkpoints.everything(store)
    found: list[Lag] = []
    for stream in keys.streams:
        found += await lag.measure(
            redis, stream, [row for row in rows if row.position.stream == stream.stream]
        )
    return found


def _hour(ms: int) -> int:
    return ms // statistics.HOUR_MS * statistics.HOUR_MS


def _number(row: Mapping[str, Any], name: str) -> int:
    return int(row[name] or 0)
