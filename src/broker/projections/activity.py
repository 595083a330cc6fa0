"""What became of messages hour by hour, from the statistics that the projector keeps."""

from __future__ import annotations

from typing import Final

import msgspec

from broker.projections import queries, sql
from broker.projections.listing import marks
from broker.projections.statistics import HOUR_MS
from broker.projections.store import Store

DAY_HOURS: Final = 24


class Hour(msgspec.Struct, frozen=True):
    """One hour of the log's clock, from `at` (milliseconds) on; outcomes of whenever the message came."""

    at: int
    submitted: int = 0
    delivered: int = 0
    failed: int = 0


async def by_hour(store: Store, since_ms: int, until_ms: int, clients: tuple[str, ...] | None) -> list[Hour]:
    """Every hour that is touched by the time, of these clients or (None) of all. Raises StoreUnavailable."""
    first = since_ms // HOUR_MS
    last = until_ms // HOUR_MS
    found: dict[int, Hour] = {}
    if clients is None or clients:
        for row in await store.select(*_hours_query(first * HOUR_MS, clients)):
            at = queries.milliseconds(row["hour"])
            found[at] = Hour(at, int(row["submitted"]), int(row["delivered"]), int(row["failed"]))
    return [found.get(hour * HOUR_MS, Hour(hour * HOUR_MS)) for hour in range(first, last + 1)]


def _hours_query(since_ms: int, clients: tuple[str, ...] | None) -> tuple[str, tuple[str, ...]]:
    owned = "" if clients is None else f" AND client_id IN ({marks(clients)})"
    return (
        "SELECT hour,SUM(submitted) AS submitted,SUM(delivered) AS delivered,SUM(failed+discarded) AS failed "
        f"FROM statistics FORCE INDEX (hour) WHERE hour>={sql.hour(since_ms)}{owned} GROUP BY hour"
    ), clients or ()
