"""How far each read model is on each stream, and what holds it up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from broker.events import standing
from broker.events.connection import Redis
from broker.events.keys import LogKeys
from broker.events.standing import Standing
from broker.projections import catalog, checkpoints, lag
from broker.projections.checkpoints import Checkpoint
from broker.projections.lag import Lag
from broker.projections.store import Store

State = Literal["running", "waiting", "stopped", "refused"]
# What is worse is said of the whole.
_ORDER: Final[tuple[State, ...]] = ("running", "waiting", "stopped", "refused")


class OnStream(msgspec.Struct, frozen=True):
    """A read model on one stream. `events` counts those applied, `events_behind` those not yet."""

    stream: str
    position: str
    events: int
    events_behind: int
    seconds_behind: Annotated[float, Meta(description="Age of the oldest event not applied yet.")]
    state: Annotated[
        State,
        Meta(
            description="`waiting`: no projector has the stream. `stopped`: at an event that it cannot take "
            "in. `refused`: log and tables do not belong together."
        ),
    ]
    reason: str | None


class Projection(msgspec.Struct, frozen=True):
    """A read model; its state is the worst of its streams'."""

    name: str
    version: int
    tables: Sequence[str]
    state: State
    events_behind: int
    seconds_behind: float
    streams: Sequence[OnStream]


async def look(store: Store, redis: Redis, keys: LogKeys) -> list[Projection]:
    """Every read model as it is now. Raises StoreUnavailable, LogUnavailable."""
    rows = await checkpoints.everything(store)
    standings = await standing.look(redis, keys)
    found: dict[str, list[OnStream]] = {name: [] for name in catalog.names()}
    for stream in keys.streams:
        own = [row for row in rows if row.position.stream == stream.stream]
        lags = await lag.measure(redis, stream, own)
        for row, behind in zip(own, lags, strict=True):
            if row.projection in found:
                found[row.projection].append(_on_stream(row, behind, standings[stream.stream]))
    return [_projection(each.name, each.tables, found[each.name]) for each in catalog.projections()]


def _on_stream(row: Checkpoint, behind: Lag, now: Standing) -> OnStream:
    state, reason = _state(row, now)
    return OnStream(
        behind.stream, str(row.position), row.events, behind.events, behind.seconds, state, reason
    )


def _state(row: Checkpoint, now: Standing) -> tuple[State, str | None]:
    if now.refused is not None:
        return "refused", now.refused
    if now.incarnation != row.incarnation:
        return "refused", f"The tables follow incarnation {row.incarnation}, the log is {now.incarnation}."
    if row.halted is not None:
        return "stopped", row.halted
    if now.owner is None:
        return "waiting", "No projector has this stream."
    return "running", None


def _projection(name: str, tables: Sequence[str], streams: Sequence[OnStream]) -> Projection:
    return Projection(
        name,
        catalog.version(name),
        tables,
        # Without a stream it has not begun.
        max((each.state for each in streams), key=_ORDER.index, default="waiting"),
        sum(each.events_behind for each in streams),
        max((each.seconds_behind for each in streams), default=0.0),
        streams,
    )
