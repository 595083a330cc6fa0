"""`attempts`: one row a delivery attempt, of every cycle."""

from __future__ import annotations

from typing import ClassVar, Final

from broker.events import types
from broker.projections import base, sql
from broker.projections.base import Folded, Item

COLUMNS: Final = (
    "message_id",
    "ms",
    "seq",
    "client_id",
    "cycle",
    "attempt",
    "at",
    "actor",
    "channel",
    "succeeded",
    "latency_ms",
    "code",
    "error",
)


class AttemptsFold:
    def __init__(self) -> None:
        self._rows: list[str] = []

    def apply(self, item: Item) -> None:
        event = base.expect(item)
        if not isinstance(event, types.DeliveryAttempted):
            return
        (_, ms, seq), envelope = item.position, item.envelope
        self._rows.append(
            f"({base.message_id(item.subject)},{ms},{seq},{sql.name(event.client_id)},"
            f"{event.cycle},{event.attempt},{sql.stamp(envelope.at)},{sql.name(envelope.actor)},"
            f"{sql.name(event.channel)},{int(event.succeeded)},{event.latency_ms},{sql.literal(event.code)},"
            f"{sql.text(base.clip(event.error))})"
        )

    def finish(self) -> Folded:
        return Folded([sql.Insert("attempts", COLUMNS, self._rows)] if self._rows else [])


class Attempts:
    """The projection `attempts`."""

    name: ClassVar[str] = "attempts"
    tables: ClassVar[tuple[str, ...]] = ("attempts",)

    def wants(self, stream: str) -> bool:
        return base.is_partition(stream)

    def begin(self, stream: str, state: bytes | None) -> AttemptsFold:  # noqa: ARG002  stateless
        return AttemptsFold()
