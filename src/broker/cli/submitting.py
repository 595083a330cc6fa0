"""Submitting many messages at once and following them: what `send` and `demo` share."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import click

from broker import clock
from broker.client import Accepted, Client, Message, Refused

BATCH = 500
POLL_SECONDS = 0.1
SLOWEST_POLL_SECONDS = 2.0
SHOWN_REFUSALS = 5


@dataclass(slots=True)
class Report:
    """What became of a run of `send`."""

    count: int
    accepted: list[Accepted] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    seconds: float = 0.0
    followed: bool = False
    statuses: dict[str, dict[str, Any]] = field(default_factory=dict)
    """With --wait: the last status of each message, by id."""

    @property
    def outcomes(self) -> dict[str, int]:
        """How many messages ended how; `queued` are those that were not waited for to the end."""
        found: dict[str, int] = {}
        for status in self.statuses.values():
            word = "parked" if status.get("parked") else str(status["status"])
            found[word] = found.get(word, 0) + 1
        return found

    @property
    def succeeded(self) -> bool:
        """Whether all were taken and, where they were followed, delivered."""
        taken = not self.refused and len(self.accepted) == self.count
        return taken and (not self.followed or self.outcomes == {"delivered": self.count})

    def as_json(self) -> dict[str, Any]:
        """One message: the gateway's answer, or its status. Several: the sums and every id."""
        if self.count == 1 and self.accepted:
            one = self.accepted[0]
            return self.statuses.get(one.message_id) or _plain(one)
        found: dict[str, Any] = {
            "count": self.count,
            "accepted": len(self.accepted),
            "refused": [_refusal(error) for error in self.refused],
            "seconds": round(self.seconds, 3),
            "per_second": round(len(self.accepted) / max(self.seconds, 0.001), 1),
            "message_ids": [one.message_id for one in self.accepted],
        }
        return found | ({"outcomes": self.outcomes} if self.followed else {})


class Progress:
    """Bars on a terminal's stderr; elsewhere only what somebody should know."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown and sys.stderr.isatty()
        self._bar: Any = None
        self._told: set[str] = set()

    def __enter__(self) -> Self:
        if self._shown:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, name: str, total: int) -> Callable[[int], None]:
        """A bar of `total`; the result advances it."""
        if self._bar is None or total < 1:
            return lambda _: None
        task = self._bar.add_task(name, total=total)
        return lambda done: self._bar.advance(task, done)

    def waiting(self, reason: str) -> None:
        """Say once why something is tried again."""
        if reason not in self._told:
            self._told.add(reason)
            click.echo(f"Trying again: {reason}", err=True)


async def submit(
    client: Client, message: Callable[[int], Message], count: int, concurrency: int, progress: Progress
) -> Report:
    """Submit `count` messages. Raises what refuses all of them; a single one's refusal, too."""
    report = Report(count)
    started = clock.monotonic()
    advance = progress.step("submitting", count)
    if count == 1:
        report.accepted.append(await client.submit(message(0)))
    else:
        starts = iter(range(0, count, BATCH))

        async def lane() -> None:
            for first in starts:
                results = await client.batch([message(n) for n in range(first, min(first + BATCH, count))])
                report.accepted += [result for result in results if isinstance(result, Accepted)]
                report.refused += [result for result in results if isinstance(result, Refused)]
                advance(len(results))

        await _together([lane() for _ in range(concurrency)])
    report.seconds = clock.monotonic() - started
    return report


async def follow(
    client: Client, report: Report, concurrency: int, timeout: float, progress: Progress
) -> None:
    """Ask for every message until it has its outcome or is parked; at most `timeout` seconds."""
    report.followed = True
    advance = progress.step("delivered", len(report.accepted))
    waiting = [one.message_id for one in report.accepted]
    deadline = clock.monotonic() + timeout
    pause = POLL_SECONDS
    while waiting:
        queue = iter(waiting)

        async def lane(queue: Any = queue) -> None:
            for message_id in queue:
                report.statuses[message_id] = await client.status(message_id)

        await _together([lane() for _ in range(concurrency)])
        still = [message_id for message_id in waiting if not ended(report.statuses[message_id])]
        advance(len(waiting) - len(still))
        waiting = still
        if not waiting or clock.monotonic() >= deadline:
            return
        await asyncio.sleep(min(pause, max(0.0, deadline - clock.monotonic())))
        pause = min(pause * 1.5, SLOWEST_POLL_SECONDS)


def ended(status: dict[str, Any]) -> bool:
    """Whether nothing more happens by itself: it has an outcome, or is parked."""
    return bool(status.get("parked")) or status["status"] != "queued"


def lines(report: Report) -> list[str]:
    """The report for people."""
    found = []
    if report.count == 1:
        for one in report.accepted:
            again = " (taken before under this key)" if one.replayed else ""
            found.append(f"{click.style('queued', fg='cyan')}     {one.message_id}  at {one.position}{again}")
        found += [_outcome(status) for status in report.statuses.values()]
    else:
        rate = len(report.accepted) / max(report.seconds, 0.001)
        found.append(
            f"{len(report.accepted)} of {report.count} messages queued in {report.seconds:.2f} s "
            f"({rate:,.0f} a second)"
        )
        if report.followed:
            found.append(", ".join(f"{count} {word}" for word, count in sorted(report.outcomes.items())))
    found += [f"refused: {error}" for error in report.refused[:SHOWN_REFUSALS]]
    if len(report.refused) > SHOWN_REFUSALS:
        found.append(f"… and {len(report.refused) - SHOWN_REFUSALS} more")
    return found


def _outcome(status: dict[str, Any]) -> str:
    attempts = status["attempt_count"]
    made = f"after {attempts} attempt{'' if attempts == 1 else 's'}"
    if status["status"] == "delivered":
        took = clock.parse_iso(status["delivered_at"]) - clock.parse_iso(status["queued_at"])
        return f"{click.style('delivered', fg='green')}  {status['message_id']}  {made}, {took} ms"
    why = _reason(status)
    if status.get("parked"):
        return f"{click.style('parked', fg='yellow')}     {status['message_id']}  {made}{why}"
    if status["status"] == "failed":
        return f"{click.style('failed', fg='red')}     {status['message_id']}  {made}{why}"
    due = f", next at {status['next_retry_at']}" if status.get("next_retry_at") else ""
    return f"{click.style('queued', fg='yellow')}     {status['message_id']}  still, {made}{due}{why}"


def _reason(status: dict[str, Any]) -> str:
    attempts = status.get("attempts") or [{}]
    text = status.get("reason") or attempts[-1].get("error")
    return f": {text}" if text else ""


async def _together(jobs: list[Any]) -> None:
    """Run jobs side by side; the first failure ends all and is raised as it is."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _plain(one: Accepted) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__struct_fields__}


def _refusal(error: Refused) -> dict[str, Any]:
    details = [{"field": one.field, "reason": one.reason} for one in error.details]
    return {"error": error.code, "message": error.detail, "details": details}
