"""Committing a batch: one transaction for all projections of a stream; what happens to rows it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from broker.events.feed import Feed
from broker.events.positions import Position
from broker.lifecycle import backoff
from broker.projections import base, checkpoints
from broker.projections.base import Entry, Projection
from broker.projections.checkpoints import Checkpoint, Move
from broker.projections.sql import Write
from broker.projections.status import StreamStatus
from broker.projections.store import Store, StoreRejected, StoreRetry
from broker.telemetry import get_logger

log = get_logger(__name__)

RETRIES: Final = 20
"""How often one transaction is repeated that lost against another, before the database counts as away."""


class Committer:
    """Moves the projections of one stream forward. `at` is where they stand, as last read or committed."""

    def __init__(
        self, feed: Feed, store: Store, projections: Mapping[str, Projection], status: StreamStatus
    ) -> None:
        self.at: dict[str, Checkpoint] = {}
        self._feed = feed
        self._stream = feed.stream
        self._store = store
        self._projections = projections
        self._status = status

    def healthy(self) -> list[Checkpoint]:
        """The checkpoints of projections that do not stand still."""
        return [at for at in self.at.values() if at.halted is None]

    def highest(self) -> Position:
        """The furthest checkpoint."""
        return max(at.position for at in self.at.values())

    async def commit(self, batch: Sequence[Entry], after: Position) -> None:
        """Fold `batch`, which follows right on `after`, into every healthy projection; commit together."""
        moves: list[Move] = []
        writes: list[Write] = []
        poisoned: list[Move] = []
        for name, at in self.at.items():
            # For a projection that is further back, the batch would leave a gap.
            if at.halted is not None or at.position < after:
                continue
            step, rows = self._fold(self._projections[name], at, batch)
            if step is not None:
                moves.append(step)
                writes += rows
                if step.halted is not None:
                    poisoned.append(step)
        try:
            await self._write(moves, writes)
        except StoreRejected as error:
            if len(moves) == 1:
                await self._isolate(moves[0].before, batch, str(error))
                return
            await self._one_by_one(moves, batch)
            return
        for step in poisoned:
            self._announce(step.before.projection, str(step.halted))

    def _fold(
        self, projection: Projection, at: Checkpoint, batch: Sequence[Entry]
    ) -> tuple[Move | None, list[Write]]:
        """The step that `batch` means for one projection, and its rows; no step when it has them all."""
        fresh = batch
        if at.position >= batch[0].position:
            fresh = [entry for entry in batch if entry.position > at.position]
        if not fresh:
            return None, []
        folded, count, poison = base.fold(projection, self._stream, at.state, fresh)
        position = fresh[count - 1].position if count else at.position
        halted = None if poison is None else f"{poison.position}: {poison.reason}"
        return Move(at, position, count, folded.state if count else at.state, halted), folded.writes

    async def _write(self, moves: Sequence[Move], writes: Sequence[Write]) -> None:
        """One transaction: checkpoints first, then rows. Repeats what lost against another transaction."""
        if not moves:
            return
        waits = backoff(0.005, 0.5)
        for attempt in range(RETRIES):
            try:
                async with self._store.transaction() as transaction:
                    await checkpoints.move(transaction, self._stream, self._feed.epoch, moves)
                    await transaction.apply(writes)
            except StoreRetry:
                self._status.retries += 1
                if attempt + 1 == RETRIES:
                    raise
                await asyncio.sleep(next(waits))
            else:
                break
        for step in moves:
            name = step.before.projection
            self.at[name] = step.after()
            status = self._status.projection(name)
            status.events += step.events
            status.halted = step.halted

    async def _one_by_one(self, moves: Sequence[Move], batch: Sequence[Entry]) -> None:
        """The database refused the batch's rows: commit each projection by itself to find whose they were."""
        for at in [step.before for step in moves]:
            step, rows = self._fold(self._projections[at.projection], at, batch)
            try:
                await self._write([step] if step else [], rows)
            except StoreRejected as error:
                await self._isolate(at, batch, str(error))
            else:
                if step is not None and step.halted is not None:
                    self._announce(at.projection, step.halted)

    async def _isolate(self, at: Checkpoint, batch: Sequence[Entry], reason: str) -> None:
        """Commit what can be of a refused batch, by halves, and halt before the event that cannot."""
        projection = self._projections[at.projection]
        rest = [entry for entry in batch if entry.position > at.position]
        while len(rest) > 1:
            half = rest[: len(rest) // 2]
            step, rows = self._fold(projection, self.at[at.projection], half)
            try:
                await self._write([step] if step else [], rows)
            except StoreRejected as error:
                rest, reason = half, str(error)
            else:
                rest = rest[len(half) :]
                if step is not None and step.halted is not None:
                    self._announce(at.projection, step.halted)
                    return
        await self._halt(self.at[at.projection], f"{rest[0].position}: {reason}")

    async def _halt(self, at: Checkpoint, reason: str) -> None:
        await self._write([Move(at, at.position, 0, at.state, reason)], [])
        self._announce(at.projection, reason)

    async def halt_at(self, position: Position, reason: str) -> None:
        """Halt the projections that stand at `position`."""
        for at in tuple(self.at.values()):
            if at.halted is None and at.position == position:
                await self._halt(at, reason)

    def _announce(self, projection: str, reason: str) -> None:
        self._status.projection(projection).halted = reason
        log.error("projection_halted", projection=projection, stream=self._stream, reason=reason)
