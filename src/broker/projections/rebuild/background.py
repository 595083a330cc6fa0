"""Rebuilds beside a server's other work: begun by a request, looked at and ended by others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from broker import clock
from broker.errors import BrokerError
from broker.events import types
from broker.events.control import Changes, Registry
from broker.events.positions import Position
from broker.projections.base import Projection
from broker.projections.rebuild import progress, run, showing
from broker.projections.rebuild.progress import RebuildCancelled, RebuildRunning
from broker.projections.rebuild.run import Rebuild, Record
from broker.projections.rebuild.sources import Source
from broker.projections.store import Store
from broker.telemetry import get_logger

log = get_logger(__name__)

BATCH: Final = 2000
"""Fewer events at once than where nobody else waits for the processor."""

WAITING_MS: Final = 30_000
"""A rebuild that said that it waits, and nothing for so long, is no more."""

State = Literal["none", "running", "switching", "interrupted"]


class Ended(msgspec.Struct, frozen=True):
    """How the last rebuild that this process ran came to its end."""

    outcome: Literal["switched", "cancelled", "failed"]
    events: int
    reason: str | None = None


class Standing(msgspec.Struct, frozen=True):
    """A rebuild as it is now."""

    projection: str
    state: Annotated[State, Meta(description="`interrupted`: begun, and nobody goes on with it.")]
    events: int = 0
    total: int = 0
    events_per_second: float | None = None
    seconds_left: float | None = None
    last: Annotated[
        Ended | None, Meta(description="How the one before ended, as far as this server knows.")
    ] = None
    waiting_for: Annotated[
        progress.WaitingFor | None, Meta(description="It runs, and goes on once this is there again.")
    ] = None
    reason: Annotated[
        str | None, Meta(description="What is waited for said so, where this server runs it.")
    ] = None


def recorder(
    registry: Registry,
    *,
    actor: str,
    correlation_id: str | None = None,
    positions: Callable[[tuple[Position, ...]], None] = lambda _: None,
) -> Record:
    """What puts a rebuild's beginning and end on record; `positions` hears where."""

    async def record(event: types.Event) -> None:
        assert isinstance(event, types.ReplayStarted | types.ReplayFinished)  # noqa: S101
        changes: Changes[None] = Changes(None, [(f"projection:{event.projection}", event)])
        done = await registry.transact(lambda _: changes, actor=actor, correlation_id=correlation_id)
        positions(done.positions)

    return record


class Rebuilds:
    """The rebuilds of one process, each with connections of its own; `source` says what they read."""

    def __init__(self, source: Callable[[], Source]) -> None:
        self._source = source
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._running: dict[str, Rebuild] = {}
        self._ended: dict[str, Ended] = {}

    async def begin(self, store: Store, projection: Projection, record: Record) -> None:
        """Begin one, or take up one that was interrupted; returns once it has begun.

        Raises RebuildRunning, StoreUnavailable, LogUnavailable, LogRefused.
        """
        name = projection.name
        if await progress.locked(store, name) or name in self._tasks:
            raise RebuildRunning(f"{name} is being rebuilt.")
        begun = asyncio.Event()
        source = self._source()
        own = store.beside(len(source.streams) + 4)
        rebuild = Rebuild(own, source, projection, record=record, batch=BATCH, on_begun=begun.set)
        self._running[name] = rebuild
        task = self._tasks[name] = asyncio.create_task(self._run(own, rebuild, name))
        task.add_done_callback(lambda _: self._tasks.pop(name, None))
        waiting = asyncio.create_task(begun.wait())
        try:
            await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if not begun.is_set():
            task.result()

    async def estimate(self, store: Store, projection: Projection) -> run.Estimate:
        """What it would take. Raises StoreUnavailable, LogUnavailable, LogRefused."""
        own = store.beside(2)
        try:
            return await run.estimate(own, self._source(), projection)
        finally:
            await own.close()

    async def look(self, store: Store, projection: Projection) -> Standing:
        """As it is now, whichever process runs it. Raises StoreUnavailable."""
        name = projection.name
        parts = await progress.load(store, name)
        held = bool(parts) and await progress.locked(store, name)
        if parts and not held:
            # It may have come to its end in between.
            parts = await progress.load(store, name)
        last, own = self._ended.get(name), self._running.get(name)
        state: State
        if not parts:
            # Of one of ours, the beginning or the end is on its way to the record still.
            state = "none" if own is None else "switching" if own.begun else "running"
            return Standing(name, state, last=last)
        now = showing.progress_of(parts, waits=None if own is None else own.waits)
        # Whoever waits for what is away holds nothing, and says again and again that it does.
        fresh = clock.now_ms() - max(part.updated_ms for part in parts) < WAITING_MS
        going = held or own is not None or (now.phase == "waiting" and fresh)
        state = "interrupted" if not going else "switching" if now.phase == "switching" else "running"
        why = (now.waiting_for, now.reason) if going else (None, None)
        return Standing(name, state, now.events, now.total, now.rate, now.seconds_left, last, *why)

    async def _run(self, store: Store, rebuild: Rebuild, name: str) -> None:
        """To the end. A failure is remembered and logged; raised only where nothing had begun."""
        try:
            result = await rebuild.run()
            self._ended[name] = Ended("switched", result.events)
        except RebuildCancelled as error:
            self._ended[name] = Ended("cancelled", 0, error.detail)
        except BrokerError as error:
            if not rebuild.begun:
                raise
            self._ended[name] = Ended("failed", 0, error.detail)
            log.error("rebuild_failed", projection=name, reason=error.detail)
        finally:
            self._running.pop(name, None)
            await store.close()
