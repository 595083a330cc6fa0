"""What a runner says about itself, read by metrics and health at any time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum


class State(StrEnum):
    """What a stream's runner is doing."""

    STARTING = "starting"
    OWNER = "owner"
    STANDBY = "standby"
    """Another process owns the stream."""
    NO_REDIS = "waiting for Redis"
    NO_MYSQL = "waiting for MySQL"
    REFUSED = "refused"
    """The log is not the one that the read models follow; a person must repair it."""
    STOPPED = "stopped"


@dataclass(slots=True)
class ProjectionStatus:
    """One projection on one stream. Lag is None until it was first measured."""

    events: int = 0
    """Applied by this process."""
    halted: str | None = None
    lag_events: int | None = None
    lag_seconds: float | None = None


@dataclass(slots=True)
class StreamStatus:
    """One stream's runner."""

    stream: str
    state: State = State.STARTING
    detail: str = ""
    epoch: int = 0
    batches: int = 0
    retries: int = 0
    projections: dict[str, ProjectionStatus] = field(default_factory=dict)
    on_batch: Callable[[str, int, float], None] | None = None
    """Called after each commit with stream, events and seconds."""

    def projection(self, name: str) -> ProjectionStatus:
        """The status of `name`, made on first use."""
        return self.projections.setdefault(name, ProjectionStatus())
