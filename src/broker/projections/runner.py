"""One stream's way into the read models: lease, fenced read, one decode, folds, one transaction.

After any failure nothing in memory is believed: the durable checkpoints are read again. That also settles a
commit whose answer was lost.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import TypeVar

from broker import clock
from broker.errors import BrokerError, LeaseLost, LogFull, LogRefused, LogUnavailable, StoreUnavailable
from broker.events.feed import Feed, HistoryTrimmed
from broker.events.positions import Position
from broker.lifecycle import backoff, sleep_or_stop
from broker.projections import base, checkpoints
from broker.projections.base import Entry, Projection
from broker.projections.checkpoints import Checkpoint, Move
from broker.projections.sql import Write
from broker.projections.status import State, StreamStatus
from broker.projections.store import Store, StoreRejected, StoreRetry
from broker.telemetry import get_logger

T = TypeVar("T")
log = get_logger(__name__)

PACE_SECONDS = 0.01
"""After emptying the stream, the next read waits this long: a trickle then makes fewer commits."""
LOOK_SECONDS = 2.0
"""How often an owner with a halted projection looks whether somebody cleared the halt."""
RETRIES = 20


class StreamRunner:
    """Projects one stream for as long as this process owns it; stands by otherwise."""

    def __init__(
        self, feed: Feed, store: Store, projections: Sequence[Projection], batch: int = 2000
    ) -> None:
        self.feed = feed
        self.stream = feed.stream
        self.status = StreamStatus(feed.stream)
        self._store = store
        self._projections = {each.name: each for each in projections if each.wants(feed.stream)}
        self._batch = batch
        self._at: dict[str, Checkpoint] = {}
        self._started = False
        self._looked = 0.0
        self._renewed = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Project until `stop` is set; never gives up before."""
        waits = backoff()
        while not stop.is_set():
            batches = self.status.batches
            try:
                await self._own(stop)
                waits = backoff()
                continue
            except LeaseLost as error:
                self._say(State.STANDBY, error)
            except LogRefused as error:
                self._say(State.REFUSED, error)
            except (LogUnavailable, LogFull) as error:
                self._say(State.NO_REDIS, error)
            except (StoreUnavailable, StoreRetry) as error:
                self._say(State.NO_MYSQL, error)
            await self._release()
            if self.status.batches != batches:
                waits = backoff()
            await sleep_or_stop(next(waits), stop)
        await self._release()
        self._say(State.STOPPED)

    def checkpoints(self) -> dict[str, Checkpoint]:
        """What this process last knew of its projections' checkpoints; empty when it is not the owner."""
        return self._at if self.status.state is State.OWNER else {}

    # -- owning -------------------------------------------------------------------------------------------

    async def _own(self, stop: asyncio.Event) -> None:
        """Own the stream until something goes wrong or `stop` is set; returns early when another owns it."""
        # A process that cannot reach the database must not keep others from the work.
        await self._store.ping()
        if left := await self.feed.acquire():
            self._say(State.STANDBY)
            await sleep_or_stop(min(left, self.feed.ttl_ms / 3000) * random.uniform(0.5, 1), stop)
            return
        self._renewed = clock.monotonic()
        await self._load()
        self.status.epoch = self.feed.epoch
        self._say(State.OWNER)
        while not stop.is_set():
            if not await self._step():
                await self._idle(stop)

    async def _load(self) -> None:
        names = self._projections
        if not self._started:
            # A restart is a person's way of saying "try again", perhaps with a newer version.
            for name in names:
                await checkpoints.resume(self._store, name, self.stream)
            self._started = True
        self._at = await checkpoints.load(self._store, self.stream, names, self.feed.incarnation)
        for name, at in self._at.items():
            self.status.projection(name).halted = at.halted
            if at.incarnation != self.feed.incarnation:
                raise LogRefused(
                    f"{name} follows incarnation {at.incarnation} of stream {self.stream}, "
                    f"the log is {self.feed.incarnation}: run `broker streams repair`."
                )

    async def _step(self) -> bool:
        """Read and commit one batch. False when the stream had nothing (more) to give."""
        healthy = [at for at in self._at.values() if at.halted is None]
        if len(healthy) != len(self._at):
            await self._look()
        if not healthy:
            return False
        lowest = min(healthy, key=lambda at: at.position)
        started = clock.monotonic()
        try:
            page = await self.feed.read(lowest.position, lowest.events, self._highest(), self._batch)
        except HistoryTrimmed as error:
            await self._halt_at(lowest.position, str(error))
            return True
        self._renewed = started
        if not page.entries:
            return False
        batch = [base.decode(entry) for entry in page.entries]
        await self._commit(batch)
        self.status.batches += 1
        if self.status.on_batch is not None:
            self.status.on_batch(self.stream, len(batch), clock.monotonic() - started)
        return len(batch) >= self._batch or page.last > batch[-1].position

    async def _idle(self, stop: asyncio.Event) -> None:
        """Wait for the doorbell, keeping the lease."""
        healthy = [at.position for at in self._at.values() if at.halted is None]
        if await sleep_or_stop(PACE_SECONDS, stop):
            return
        if not healthy:
            await sleep_or_stop(min(LOOK_SECONDS, self.feed.ttl_ms / 3000), stop)
        elif await _unless_stopped(self.feed.wait(min(healthy)), stop):
            return
        if clock.monotonic() - self._renewed > self.feed.ttl_ms / 3000:
            self._renewed = clock.monotonic()
            await self.feed.renew(self._highest())

    def _highest(self) -> Position:
        return max(at.position for at in self._at.values())

    # -- committing ---------------------------------------------------------------------------------------

    async def _commit(self, batch: Sequence[Entry]) -> None:
        """Fold `batch` into every healthy projection that has not had it, and commit all of them together."""
        moves: list[Move] = []
        writes: list[Write] = []
        poisoned: list[Move] = []
        for name, at in self._at.items():
            if at.halted is not None:
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
            await self._one_by_one(batch)
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
        folded, count, poison = base.fold(projection, self.stream, at.state, fresh)
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
                    await checkpoints.move(transaction, self.stream, self.feed.epoch, moves)
                    await transaction.apply(writes)
            except StoreRetry:
                self.status.retries += 1
                if attempt + 1 == RETRIES:
                    raise
                await asyncio.sleep(next(waits))
            else:
                break
        for step in moves:
            name = step.before.projection
            self._at[name] = step.after()
            status = self.status.projection(name)
            status.events += step.events
            status.halted = step.halted

    async def _one_by_one(self, batch: Sequence[Entry]) -> None:
        """The database refused the batch's rows: commit each projection by itself to find whose they were."""
        for name, at in tuple(self._at.items()):
            if at.halted is not None:
                continue
            step, rows = self._fold(self._projections[name], at, batch)
            if step is None:
                continue
            try:
                await self._write([step], rows)
            except StoreRejected as error:
                await self._isolate(at, batch, str(error))
            else:
                if step.halted is not None:
                    self._announce(name, step.halted)

    async def _isolate(self, at: Checkpoint, batch: Sequence[Entry], reason: str) -> None:
        """Commit what can be of a refused batch, by halves, and halt before the event that cannot."""
        projection = self._projections[at.projection]
        rest = [entry for entry in batch if entry.position > at.position]
        while len(rest) > 1:
            half = rest[: len(rest) // 2]
            step, rows = self._fold(projection, self._at[at.projection], half)
            try:
                await self._write([step] if step else [], rows)
            except StoreRejected as error:
                rest, reason = half, str(error)
            else:
                rest = rest[len(half) :]
                if step is not None and step.halted is not None:
                    self._announce(at.projection, step.halted)
                    return
        await self._halt(self._at[at.projection], f"{rest[0].position}: {reason}")

    # -- halting ------------------------------------------------------------------------------------------

    async def _halt(self, at: Checkpoint, reason: str) -> None:
        await self._write([Move(at, at.position, 0, at.state, reason)], [])
        self._announce(at.projection, reason)

    async def _halt_at(self, position: Position, reason: str) -> None:
        for at in tuple(self._at.values()):
            if at.halted is None and at.position == position:
                await self._halt(at, reason)

    async def _look(self) -> None:
        """Take up projections whose halt somebody cleared."""
        if clock.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = clock.monotonic()
        still = await checkpoints.halted(self._store, self.stream)
        if any(at.halted is not None and name not in still for name, at in self._at.items()):
            await self._load()

    def _announce(self, projection: str, reason: str) -> None:
        self.status.projection(projection).halted = reason
        log.error("projection_halted", projection=projection, stream=self.stream, reason=reason)

    # -- the rest -----------------------------------------------------------------------------------------

    async def _release(self) -> None:
        with suppress(BrokerError, asyncio.TimeoutError):
            # It expires by itself if this does not reach Redis.
            await asyncio.wait_for(self.feed.release(), 1.0)

    def _say(self, state: State, error: BrokerError | None = None) -> None:
        """Record the state; one log line per change, not per attempt."""
        detail = str(error) if error is not None else ""
        if state is not self.status.state:
            level = log.error if state is State.REFUSED else log.info if error is None else log.warning
            level(
                "projector_state", stream=self.stream, state=str(state), detail=detail, epoch=self.feed.epoch
            )
        self.status.state, self.status.detail = state, detail


async def _unless_stopped(work: Awaitable[T], stop: asyncio.Event) -> bool:
    """Await `work`, raising what it raises; True when `stop` was set first."""
    task = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return False
        return True
    finally:
        for each in (task, stopped):
            if not each.done():
                each.cancel()
                with suppress(asyncio.CancelledError, BrokerError):
                    await each
