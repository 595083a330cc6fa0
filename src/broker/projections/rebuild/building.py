"""Filling shadow tables: every stream of the projection at once, in large transactions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Final

from broker import clock
from broker.errors import BrokerError
from broker.events.codec import Stored
from broker.events.positions import Position
from broker.lifecycle import backoff
from broker.projections import base
from broker.projections.base import Folded, Projection
from broker.projections.rebuild import progress, shadow
from broker.projections.rebuild.progress import Part
from broker.projections.rebuild.sources import Source
from broker.projections.store import Store, StoreRetry

BATCH: Final = 8000
"""Events a transaction: many events of one message then make one row write."""
RETRIES: Final = 20


class RebuildStopped(BrokerError):
    """An event cannot be taken into the rebuilt tables; the present ones serve on."""

    code = "rebuild_stopped"


class Builder:
    """Fills the shadow tables of one projection; `parts` says how far they are."""

    def __init__(
        self,
        store: Store,
        source: Source,
        projection: Projection,
        parts: Sequence[Part],
        *,
        batch: int = BATCH,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        self.parts = {part.position.stream: part for part in parts}
        self._store = store
        self._source = source
        self._projection = projection
        self._batch = batch
        self._on_progress = on_progress

    @property
    def events(self) -> int:
        """In the shadow tables."""
        return sum(part.events for part in self.parts.values())

    async def advance(self, upto: Mapping[str, Position | None]) -> None:
        """Take in what there is now, on each of these streams no further than its position (None: all).

        Raises RebuildStopped, RebuildCancelled, LeaseLost, StoreUnavailable, and what the source raises.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for stream, end in upto.items():
                    group.create_task(self._advance(stream, end))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors

    async def _advance(self, stream: str, end: Position | None) -> None:
        after = self.parts[stream].position
        if end is not None and after >= end:
            return
        gathered: list[Stored] = []
        async with aclosing(self._source.blocks(stream, after)) as blocks:
            async for block in blocks:
                taken = block if end is None else [each for each in block if each.position <= end]
                gathered += taken
                while len(gathered) >= self._batch:
                    await self._commit(stream, gathered[: self._batch])
                    gathered = gathered[self._batch :]
                if len(taken) < len(block):
                    break
        if gathered:
            await self._commit(stream, gathered)

    async def _commit(self, stream: str, entries: Sequence[Stored]) -> None:
        """One transaction: the position first, then the rows."""
        at = self.parts[stream]
        folded = await asyncio.to_thread(fold, self._projection, at, entries)
        writes = shadow.into(folded.writes, shadow.NEXT)
        waits = backoff(0.005, 0.5)
        for attempt in range(RETRIES):
            try:
                async with self._store.transaction() as transaction:
                    moved = await progress.advance(
                        transaction, at, entries[-1].position, len(entries), folded.state
                    )
                    await transaction.apply(writes)
            except StoreRetry:
                if attempt + 1 == RETRIES:
                    raise
                await asyncio.sleep(next(waits))
            else:
                self.parts[stream] = moved
                self._on_progress()
                return


def fold(projection: Projection, at: Part, entries: Sequence[Stored]) -> Folded:
    """The rows of a batch. Raises RebuildStopped naming the event that cannot be folded."""
    batch = [base.decode(entry) for entry in entries]
    folded, _, poison = base.fold(projection, at.position.stream, at.state, batch)
    if poison is not None:
        raise RebuildStopped(
            f"{projection.name} cannot take in the event at {poison.position}: {poison.reason}"
        )
    return folded


async def measured(store: Store, source: Source, projection: Projection, limit: int = 20_000) -> float | None:
    """Events a second, by filling a trial of the shadow tables with some of the history; None without any."""
    events, began = 0, clock.monotonic()
    async with store.session() as session:
        await progress.take_lock(session, f"{projection.name}{shadow.TRIAL}")
        await shadow.create(session, projection.tables, shadow.TRIAL)
        try:
            for stream in (each for each in source.streams if projection.wants(each)):
                at = Part(projection.name, _start(stream), 0, 0, 0, "", "building", 0, 0, 0, cancelled=False)
                gathered: list[Stored] = []
                async with aclosing(source.blocks(stream, at.position)) as blocks:
                    async for block in blocks:
                        gathered += block
                        if len(gathered) >= min(BATCH, limit - events):
                            break
                if gathered:
                    folded = await asyncio.to_thread(fold, projection, at, gathered)
                    async with store.transaction() as transaction:
                        await transaction.apply(shadow.into(folded.writes, shadow.TRIAL))
                    events += len(gathered)
                if events >= limit:
                    break
        finally:
            await shadow.drop(session, projection.tables, shadow.TRIAL)
    return events / max(0.001, clock.monotonic() - began) if events else None


def _start(stream: str) -> Position:
    return Position(stream, 0, 0)
