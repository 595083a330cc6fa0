"""Spans of what became visible: from reading an event to its rows being committed."""

from __future__ import annotations

from collections.abc import Sequence

from broker import tracing
from broker.events.positions import Position
from broker.events.types import Delivered, Failed, MessageDiscarded, MessageSubmitted
from broker.projections.base import Entry, Item


def projected(batch: Sequence[Entry], visible: Position, start: int) -> None:
    """Each submit and each outcome of `batch` up to `visible`, read at `start` (ns since the epoch)."""
    for entry in batch:
        if not isinstance(entry, Item) or entry.position > visible:
            continue
        event = entry.event
        if isinstance(event, MessageSubmitted):
            parent = tracing.SUBMIT
        elif isinstance(event, Delivered | Failed | MessageDiscarded):
            parent = tracing.attempt(event.cycle, event.attempt)
        else:
            continue
        kind = type(event).__name__
        tracing.record(
            entry.subject,
            f"project {kind}",
            start,
            key=f"project {entry.position}",
            parent=parent,
            event=kind,
            position=str(entry.position),
        )
