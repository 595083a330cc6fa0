"""How far a rebuild is, for people."""

from __future__ import annotations

from typing import Literal

import msgspec

from broker.projections.rebuild.progress import Part


class Progress(msgspec.Struct, frozen=True):
    """How far a rebuild is, in events of all its streams; the rate is this process' own."""

    projection: str
    phase: Literal["building", "switching", "waiting"]
    events: int
    total: int
    rate: float | None
    seconds_left: float | None
    waiting_for: str | None = None


def rate(parts: list[Part], now_ms: int) -> float | None:
    """Events a second since the process that builds took it up; None before there is anything to go by."""
    done = sum(part.events - part.started_with for part in parts)
    began = min((part.started_ms for part in parts), default=now_ms)
    return done * 1000 / (now_ms - began) if done > 0 and now_ms > began else None


def progress_of(parts: list[Part], *, waiting_for: str | None = None) -> Progress:
    """The progress that these parts make."""
    latest = max(part.updated_ms for part in parts)
    events, total = sum(part.events for part in parts), sum(part.total for part in parts)
    speed = rate(parts, latest)
    left = None if speed is None else max(0, total - events) / speed
    phase: Literal["building", "switching", "waiting"] = parts[0].phase if waiting_for is None else "waiting"
    return Progress(parts[0].projection, phase, events, max(total, events), speed, left, waiting_for)
