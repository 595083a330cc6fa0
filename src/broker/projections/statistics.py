"""`statistics` and `latencies`: counters per partition, hour of the log's clock, and client.

What is open now is `submitted + resent - delivered - failed - discarded`, summed. The latency of a message is
from the making of its id to its delivery in the first cycle: both are in the one event, so no state is kept.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from typing import ClassVar, Final

from broker.domain import ids
from broker.events import types
from broker.projections import base, sql
from broker.projections.base import Folded, Item

COUNTERS: Final = (
    "submitted",
    "attempts",
    "failed_attempts",
    "retries",
    "delivered",
    "failed",
    "discarded",
    "parked",
    "resent",
)
_NUMBER: Final = {name: number for number, name in enumerate(COUNTERS)}
_COUNTED: Final[dict[type, int]] = {
    types.MessageSubmitted: _NUMBER["submitted"],
    types.DeliveryAttempted: _NUMBER["attempts"],
    types.RetryScheduled: _NUMBER["retries"],
    types.Delivered: _NUMBER["delivered"],
    types.Failed: _NUMBER["failed"],
    types.MessageDiscarded: _NUMBER["discarded"],
    types.MessageParked: _NUMBER["parked"],
    types.ResendRequested: _NUMBER["resent"],
}
BOUNDS_MS: Final = tuple(sorted({round(2 ** (step / 4)) for step in range(119)}))
"""Upper bounds of the latency buckets, each 19 % over the last, up to nine days; one more takes the rest."""

HOUR_MS: Final = 3_600_000


class StatisticsFold:
    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._counts: dict[tuple[int, str], list[int]] = {}
        self._buckets: Counter[tuple[int, int]] = Counter()

    def apply(self, item: Item) -> None:
        event = base.expect(item)
        number = _COUNTED.get(type(event))
        if number is None or not isinstance(event, types.MessageEvent):
            return
        hour = item.position.ms // HOUR_MS
        key = (hour, event.client_id)
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = [0] * len(COUNTERS)
        counts[number] += 1
        if isinstance(event, types.DeliveryAttempted):
            if not event.succeeded:
                counts[_NUMBER["failed_attempts"]] += 1
        elif isinstance(event, types.Delivered) and event.cycle == 1:
            took = item.envelope.at - ids.created_ms(item.subject)
            self._buckets[hour, bucket(took)] += 1

    def finish(self) -> Folded:
        writes: list[sql.Write] = []
        if self._counts:
            rows = [
                f"('{self._stream}',{sql.hour(hour * HOUR_MS)},{sql.text(client)},"
                f"{','.join(map(str, counts))})"
                for (hour, client), counts in sorted(self._counts.items())
            ]
            writes.append(sql.Add("statistics", ("stream", "hour", "client_id", *COUNTERS), 3, rows))
        if self._buckets:
            rows = [
                f"('{self._stream}',{sql.hour(hour * HOUR_MS)},{number},{count})"
                for (hour, number), count in sorted(self._buckets.items())
            ]
            writes.append(sql.Add("latencies", ("stream", "hour", "bucket", "messages"), 3, rows))
        return Folded(writes)


def bucket(latency_ms: int) -> int:
    """The number of the bucket that holds `latency_ms`."""
    return bisect_left(BOUNDS_MS, latency_ms)


def percentile(buckets: Mapping[int, int], share: float) -> int | None:
    """Milliseconds within which `share` (0–1) of the messages were delivered: a bucket's upper bound."""
    total = sum(buckets.values())
    if not total:
        return None
    seen = 0
    for number in sorted(buckets):
        seen += buckets[number]
        if seen >= share * total:
            return BOUNDS_MS[min(number, len(BOUNDS_MS) - 1)]
    return BOUNDS_MS[-1]


class Statistics:
    """The projection `statistics`."""

    name: ClassVar[str] = "statistics"
    tables: ClassVar[tuple[str, ...]] = ("statistics", "latencies")

    def wants(self, stream: str) -> bool:
        return base.is_partition(stream)

    def begin(self, stream: str, state: bytes | None) -> StatisticsFold:  # noqa: ARG002  stateless
        return StatisticsFold(stream)
