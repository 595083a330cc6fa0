"""How far a rebuild is, or what it waits for, for people."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from broker.errors import BrokerError, LogUnavailable
from broker.events.archive.storage import ArchiveUnavailable
from broker.projections.rebuild import progress
from broker.projections.rebuild.progress import Part, WaitingFor

NAMES: Final[dict[WaitingFor, str]] = {"redis": "Redis", "archive": "the archive", "mysql": "MySQL"}


class Waiting(msgspec.Struct, frozen=True):
    """What a rebuild cannot go on without, and what that said."""

    what: WaitingFor
    reason: str


def waiting(error: BrokerError) -> Waiting:
    """For what one waits that failed with this."""
    if isinstance(error, ArchiveUnavailable):
        return Waiting("archive", error.detail)
    return Waiting("redis" if isinstance(error, LogUnavailable) else "mysql", error.detail)


class Progress(msgspec.Struct, frozen=True):
    """How far a rebuild is, in events of all its streams; the rate is this process' own."""

    projection: str
    phase: Literal["building", "switching", "waiting"]
    events: int
    total: int
    rate: float | None
    seconds_left: float | None
    waiting_for: WaitingFor | None = None
    reason: str | None = None
    """What is waited for said so, where that is known."""


def rate(parts: list[Part], now_ms: int) -> float | None:
    """Events a second since the process that builds took it up; None before there is anything to go by."""
    done = sum(part.events - part.started_with for part in parts)
    began = min((part.started_ms for part in parts), default=now_ms)
    return done * 1000 / (now_ms - began) if done > 0 and now_ms > began else None


def progress_of(parts: list[Part], *, waits: Waiting | None = None) -> Progress:
    """The progress that these parts make; without a rate while it waits."""
    newest = max(parts, key=lambda part: (part.updated_ms, part.phase == progress.BUILDING))
    events, total = sum(part.events for part in parts), sum(part.total for part in parts)
    total = max(total, events)
    name, phase = newest.projection, newest.phase
    awaited = waits.what if waits is not None else progress.WAITING.get(phase)
    if awaited is not None:
        reason = waits.reason if waits is not None else None
        return Progress(name, "waiting", events, total, None, None, awaited, reason)
    speed = rate(parts, newest.updated_ms)
    left = None if speed is None else (total - events) / speed
    doing: Literal["building", "switching"] = "switching" if phase == progress.SWITCHING else "building"
    return Progress(name, doing, events, total, speed, left)
