"""One stream's way into the read models: lease, fenced read, one decode, folds, one transaction.

After any failure nothing in memory is believed: the durable checkpoints are read again. That also settles a
commit whose answer was lost.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

from broker import clock, tracing
from broker.errors import BrokerError, LeaseLost, LogFull, LogRefused, LogUnavailable, StoreUnavailable
from broker.events.feed import Feed, HistoryTrimmed
from broker.events.positions import CONTROL
from broker.lifecycle import backoff, sleep_or_stop
from broker.projections import base, catalog, checkpoints, traces
from broker.projections.base import Projection
from broker.projections.checkpoints import Checkpoint
from broker.projections.committing import Committer
from broker.projections.rebuild import leftovers, switching
from broker.projections.status import State, StreamStatus
from broker.projections.store import Store, StoreRetry
from broker.telemetry import get_logger

T = TypeVar("T")
log = get_logger(__name__)

PACE_SECONDS = 0.01
"""After emptying the stream, the next read waits this long: a trickle then makes fewer commits."""
BUSY_RATE = 500
"""From so many events a second in one stream on, the next read waits until GATHER are likely to be there."""
GATHER = 500
"""Submit and outcome of a message then mostly meet in one batch, and make one row write instead of two."""
GATHER_SECONDS = 0.2
"""But no longer than this."""
RATE_SECONDS = 0.3
"""What "of late" means: a few events close together are no rate."""
LOOK_SECONDS = 2.0
"""How often an owner with a halted projection looks whether somebody cleared the halt."""
MESSAGES = "messages"
"""The read model in which people see what became of a message."""


class Rate:
    """Events a second, of late; nothing counts any more once nothing was found."""

    def __init__(self) -> None:
        self.value = 0.0
        self._at = 0.0

    def count(self, events: int, now: float) -> None:
        """So many were found at `now` (monotonic seconds)."""
        faded = self.value * math.exp((self._at - now) / RATE_SECONDS)
        self.value = faded + events / RATE_SECONDS if events else 0.0
        self._at = now


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
        self._committer = Committer(feed, store, self._projections, self.status)
        self._started = False
        self._tidied = feed.stream != CONTROL
        self._looked = 0.0
        self._renewed = 0.0
        self._rate = Rate()

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
            await self.feed.let_go()
            if self.status.batches != batches:
                waits = backoff()
            await sleep_or_stop(next(waits), stop)
        await self.feed.let_go()
        self._say(State.STOPPED)

    def checkpoints(self) -> dict[str, Checkpoint]:
        """What this process last knew of its projections' checkpoints; empty when it is not the owner."""
        return self._committer.at if self.status.state is State.OWNER else {}

    # -- owning -------------------------------------------------------------------------------------------

    async def _own(self, stop: asyncio.Event) -> None:
        """Own the stream until something goes wrong or `stop` is set; returns early when another owns it."""
        # A process that cannot reach the database must not keep others from the work.
        await self._store.ping()
        if not self._tidied:
            await leftovers.tidy(self._store, catalog.projections())
            self._tidied = True
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
        self._committer.at = await checkpoints.load(self._store, self.stream, names, self.feed.incarnation)
        for name, at in self._committer.at.items():
            self.status.projection(name).halted = at.halted
            if at.incarnation != self.feed.incarnation:
                raise LogRefused(
                    f"{name} follows incarnation {at.incarnation} of stream {self.stream}, the log is "
                    f"{self.feed.incarnation}: one of Redis and the database was restored without the other, "
                    "or they do not belong together. Restore both from backups of the same time."
                )

    async def _step(self) -> bool:
        """Read and commit one batch. False when the stream had nothing (more) to give."""
        if len(self._committer.healthy()) != len(self._committer.at):
            await self._look()
        healthy = self._committer.healthy()
        if not healthy:
            return False
        lowest = min(healthy, key=lambda at: at.position)
        started = clock.monotonic()
        try:
            page = await self.feed.read(
                lowest.position, lowest.events, self._committer.highest(), self._batch
            )
        except HistoryTrimmed as error:
            await self._committer.halt_at(lowest.position, str(error))
            return True
        self._rate.count(len(page.entries), started)
        self._renewed = started
        if not page.entries:
            return False
        batch = [base.decode(entry) for entry in page.entries]
        began = tracing.now()
        await self._renewing(self._committer.commit(batch, lowest.position))
        if began and MESSAGES in self._committer.at:
            traces.projected(batch, self._committer.at[MESSAGES].position, began)
        self.status.batches += 1
        if self.status.on_batch is not None:
            self.status.on_batch(self.stream, len(batch), clock.monotonic() - started)
        return len(batch) >= self._batch or page.last > batch[-1].position

    async def _idle(self, stop: asyncio.Event) -> None:
        """Wait for the doorbell, keeping the lease; where events come fast, only until some have gathered."""
        healthy = self._committer.healthy()
        busy = bool(healthy) and self._rate.value >= BUSY_RATE
        if await sleep_or_stop(self._gathering() if busy else PACE_SECONDS, stop) or busy:
            return
        if not healthy:
            await sleep_or_stop(min(LOOK_SECONDS, self.feed.ttl_ms / 3000), stop)
        elif await _unless_stopped(self.feed.wait(min(at.position for at in healthy)), stop):
            return
        if clock.monotonic() - self._renewed > self.feed.ttl_ms / 3000:
            self._renewed = clock.monotonic()
            await self.feed.renew(self._committer.highest())

    def _gathering(self) -> float:
        """Seconds until a stream as fast as this one brings GATHER events; always well inside the lease."""
        return min(GATHER / self._rate.value, GATHER_SECONDS, self.feed.ttl_ms / 6000)

    async def _renewing(self, work: Awaitable[None]) -> None:
        """Await `work` however long it takes, keeping the lease; cancel it when the lease is lost."""
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait((task,), timeout=self.feed.ttl_ms / 3000))[0]:
                await self.feed.renew(self._committer.highest())
            task.result()
        finally:
            await _cancelled(task)

    async def _look(self) -> None:
        """Take up projections whose halt somebody cleared."""
        if clock.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = clock.monotonic()
        for name, at in self._committer.at.items():
            if at.held:
                await switching.release_abandoned(self._store, self._projections[name])
        still = await checkpoints.halted(self._store, self.stream)
        if any(at.halted is not None and name not in still for name, at in self._committer.at.items()):
            await self._load()

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
        await _cancelled(task)
        await _cancelled(stopped)


async def _cancelled(task: asyncio.Future[Any]) -> None:
    """Cancel `task` if it still runs, and wait for its end; its result no longer matters."""
    if not task.done():
        task.cancel()
        await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()
