"""A rebuild from beginning to end: taken up after a crash, patient with what is away, one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, Literal

import msgspec

from broker import clock
from broker.errors import BrokerError, LeaseLost, LogRefused, LogUnavailable, StoreUnavailable
from broker.events import types
from broker.events.archive.storage import ArchiveUnavailable
from broker.events.positions import Position
from broker.lifecycle import backoff
from broker.projections import catalog, checkpoints
from broker.projections.base import Projection
from broker.projections.rebuild import building, comparing, progress, shadow, showing, switching
from broker.projections.rebuild.building import BATCH, Builder
from broker.projections.rebuild.comparing import Difference
from broker.projections.rebuild.progress import RebuildCancelled, RebuildRunning
from broker.projections.rebuild.showing import Progress, Waiting, progress_of
from broker.projections.rebuild.sources import Source
from broker.projections.rebuild.switching import RebuildBlocked
from broker.projections.store import Store, StoreRetry, Transaction
from broker.telemetry import get_logger

log = get_logger(__name__)

NEAR_SECONDS: Final = 1.0
"""Once a pass over what is new took less, the projection can be held for one more."""

RECORD_ATTEMPTS: Final = 10
AWAY: Final = (StoreUnavailable, StoreRetry, LogUnavailable, ArchiveUnavailable)
"""What is waited for."""

Record = Callable[[types.Event], Awaitable[object]]


class Estimate(msgspec.Struct, frozen=True):
    """What a rebuild would take. `seconds` is None while there is nothing to measure by."""

    projection: str
    tables: tuple[str, ...]
    events: int
    rate: float | None
    seconds: float | None


class Result(msgspec.Struct, frozen=True):
    """How a rebuild ended; `differences` only where they were asked for.

    `nothing`: what is read has none of its streams, so that the present tables stay.
    """

    projection: str
    outcome: Literal["switched", "discarded", "nothing"]
    events: int
    seconds: float
    differences: list[Difference] | None = None


def named(name: str) -> Projection | None:
    """The projection of this name."""
    return next((each for each in catalog.projections() if each.name == name), None)


async def estimate(store: Store, source: Source, projection: Projection) -> Estimate:
    """How many events a rebuild would read and about how long it would take, by trying some."""
    totals = await source.totals()
    events = sum(total for stream, total in totals.items() if projection.wants(stream))
    speed = await building.measured(store, source, projection)
    return Estimate(projection.name, projection.tables, events, speed, events / speed if speed else None)


async def recorded_end(
    record: Record, name: str, outcome: Literal["switched", "cancelled", "failed"], events: int
) -> None:
    """Put an end on record; waits a while for Redis, because what ended has ended. Raises LogUnavailable."""
    for attempt, wait in enumerate(backoff(0.2), 1):
        try:
            await record(types.ReplayFinished(name, catalog.version(name), outcome, events))
        except LogUnavailable as error:
            if isinstance(error, LogRefused) or attempt == RECORD_ATTEMPTS:
                raise
            await asyncio.sleep(wait)
        else:
            return


async def cancel(store: Store, projection: Projection, record: Record | None = None) -> bool:
    """End a rebuild that was begun, running or not; False where there is none.

    Whoever runs it puts its end on record, else `record` does. Raises StoreUnavailable, LogUnavailable.
    """
    if not await progress.load(store, projection.name):
        return False
    await progress.ask_to_cancel(store, projection.name)
    async with store.session() as session:
        with suppress(RebuildRunning):
            await progress.take_lock(session, projection.name)
            found = await switching.settle(session, projection)
            if found == "building":
                await switching.discard(session, projection)
            if found != "nothing" and record is not None:
                await recorded_end(record, projection.name, "cancelled" if found == "building" else found, 0)
            await progress.release_lock(session, projection.name)
    return True


class Rebuild:
    """Rebuilds one projection. `switch`: whether the tables change places in the end."""

    def __init__(
        self,
        store: Store,
        source: Source,
        projection: Projection,
        *,
        record: Record | None = None,
        compare: bool = False,
        switch: bool = True,
        batch: int = BATCH,
        on_progress: Callable[[Progress], None] = lambda _: None,
        on_begun: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_begun = on_begun
        self._store = store
        self._source = source
        self._projection = projection
        self._version = catalog.version(projection.name)
        self._record = record
        self._compare = compare
        self._switch = switch
        self._batch = batch
        self._on_progress = on_progress
        self._streams = [stream for stream in source.streams if projection.wants(stream)]
        self._builder: Builder | None = None
        self._switching = False
        self._differences: list[Difference] | None = None
        self.waits: Waiting | None = None
        """What it waits for now."""

    @property
    def begun(self) -> bool:
        """Whether there is something of it that the next one can take up."""
        return self._builder is not None

    async def run(self) -> Result:
        """Rebuild; waits for servers that are away and goes on where it was.

        Raises RebuildRunning, RebuildCancelled, RebuildStopped, RebuildBlocked, LogRefused, HistoryGap,
        ArchiveDamaged. After all but a cancellation it can be taken up again.
        """
        if not self._streams:
            return Result(self._projection.name, "nothing", 0, 0.0)
        began = clock.monotonic()
        waits = backoff(0.2)
        events: int | None = None
        while events is None:
            try:
                events = await self._attempt()
            except RebuildCancelled:
                await self._ended("cancelled")
                raise
            except BrokerError as error:
                if isinstance(error, LogRefused) or not isinstance(error, AWAY):
                    await self._failed(error)
                    raise
                if self._builder is None:
                    # Nothing was begun: whoever calls should hear of it.
                    raise
                await self._wait(error, next(waits))
        outcome: Literal["switched", "discarded"] = "switched" if self._switch else "discarded"
        await self._ended("switched" if self._switch else "cancelled", events)
        seconds = clock.monotonic() - began
        return Result(self._projection.name, outcome, events, seconds, self._differences)

    async def _attempt(self) -> int:
        """One attempt on one connection, whose lock keeps others away; the events in the tables."""
        projection = self._projection
        async with self._store.session() as session:
            await progress.take_lock(session, projection.name)
            found = await switching.settle(session, projection)
            if found == "switched" or (found == "nothing" and self._switching):
                # By us, or for us by whoever came upon what we had begun.
                return self._builder.events if self._builder is not None else 0
            if found == "nothing" and self._builder is not None:
                raise RebuildCancelled(f"The rebuild of {projection.name} was cancelled.")
            self._switching = False
            builder = self._builder = await self._begin(session)
            self._on_begun()
            try:
                await self._fill(builder)
                await self._close_up(session, builder)
                if self._compare:
                    self._differences = await comparing.compare(session, projection)
                if self._switch:
                    self._switching = True
                    await switching.switch(session, projection)
                else:
                    await switching.discard(session, projection)
            except RebuildCancelled:
                await switching.discard(session, projection)
                raise
            except BaseException as error:
                # Once it may have been renamed, only who finds out how far it came may let the projection go.
                if not self._switching or isinstance(error, RebuildBlocked):
                    with suppress(Exception):
                        await checkpoints.hold(session, projection.name, held=False)
                raise
            return builder.events

    async def _begin(self, session: Transaction) -> Builder:
        """What there is of shadow tables, if it can be gone on with, else empty ones."""
        name = self._projection.name
        incarnations = {stream: self._source.incarnations[stream] for stream in self._streams}
        parts = await progress.load(self._store, name)
        known = {part.position.stream: part.incarnation for part in parts}
        stale = any(part.version != self._version or part.cancelled for part in parts)
        if parts and (stale or known != incarnations):
            await switching.discard(session, self._projection)
            parts = []
        if not parts:
            if self._record is not None and self._builder is None:
                await self._record(types.ReplayStarted(name, self._version))
            await shadow.create(session, self._projection.tables, shadow.NEXT)
            await progress.begin(session, name, self._version, incarnations)
        totals = await self._source.totals()
        await progress.started(session, name, {stream: totals.get(stream, 0) for stream in self._streams})
        parts = await progress.load(self._store, name)
        return Builder(
            self._store,
            self._source,
            self._projection,
            parts,
            batch=self._batch,
            on_progress=self._went_on,
        )

    async def _fill(self, builder: Builder) -> None:
        """Take the history in, again and again, until little is left."""
        while True:
            began = clock.monotonic()
            await builder.advance(await self._ends())
            self.waits = None
            if clock.monotonic() - began < NEAR_SECONDS:
                return

    async def _close_up(self, session: Transaction, builder: Builder) -> None:
        """Hold the projection and bring the shadow tables to where it stands, or further where it lags."""
        for stream in self._streams:
            # Without a row there would be nothing to hold.
            incarnation = self._source.incarnations[stream]
            await checkpoints.load(self._store, stream, [self._projection.name], incarnation)
        await checkpoints.hold(session, self._projection.name, held=True)
        stands = await self._stands()
        await builder.advance({stream: at.position for stream, at in stands.items()})
        for stream, at in stands.items():
            if builder.parts[stream].position < at.position:
                raise building.RebuildStopped(
                    f"{self._projection.name} stands at {at.position}, and the history read ends at "
                    f"{builder.parts[stream].position}."
                )

    async def _ends(self) -> dict[str, Position | None]:
        """How far to go on each stream: where the projection stands, so that the two can be compared.

        Where it has not begun, stands still or nobody moves it, all there is.
        """
        stands = await self._stands()
        found: dict[str, Position | None] = dict.fromkeys(self._streams)
        for stream, at in stands.items():
            if at.halted is None and at.events:
                found[stream] = at.position
        return found

    async def _stands(self) -> dict[str, checkpoints.Checkpoint]:
        rows = await checkpoints.everything(self._store)
        name = self._projection.name
        return {row.position.stream: row for row in rows if row.projection == name}

    async def _wait(self, error: BrokerError, seconds: float) -> None:
        """Wait for what is away; the log says so once, and the database to whoever looks at it."""
        now = showing.waiting(error)
        if self.waits is None or self.waits.what != now.what:
            log.warning("rebuild_waiting", projection=self._projection.name, reason=error.detail)
        self.waits = now
        self._show()
        with suppress(StoreUnavailable, StoreRetry):
            await progress.wait(self._store, self._projection.name, now.what)
        await asyncio.sleep(seconds)

    def _went_on(self) -> None:
        self.waits = None
        self._show()

    def _show(self) -> None:
        if self._builder is not None:
            self._on_progress(progress_of(list(self._builder.parts.values()), waits=self.waits))

    async def _failed(self, error: BrokerError) -> None:
        """Put on record that it goes no further for now, unless it is another's."""
        if self._builder is not None and not isinstance(error, RebuildRunning | LeaseLost):
            with suppress(BrokerError):
                await self._ended("failed", self._builder.events)

    async def _ended(self, outcome: Literal["switched", "cancelled", "failed"], events: int = 0) -> None:
        if self._record is not None:
            await recorded_end(self._record, self._projection.name, outcome, events)
