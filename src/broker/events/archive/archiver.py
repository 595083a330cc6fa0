"""Archiving one stream: lease, fenced read, segments sealed one after another, the durable position recorded.

The manifests alone say how far the archive is; what Redis holds of it follows them. What was gathered and not
sealed yet is read again by the next owner: trimming stops at the durable position.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeVar

import msgspec

from broker import clock
from broker.errors import BrokerError, LeaseLost, LogFull, LogRefused, LogUnavailable
from broker.events import positions
from broker.events.archive.segments import GENESIS, ArchiveDamaged, Manifest, Segment
from broker.events.archive.storage import ArchiveUnavailable
from broker.events.archive.store import StreamArchive
from broker.events.connection import call
from broker.events.feed import Feed, HistoryTrimmed, Page
from broker.events.key_copies import KeyKeeper
from broker.events.positions import Position
from broker.events.scripting import Script
from broker.lifecycle import backoff, sleep_or_stop
from broker.telemetry import get_logger

T = TypeVar("T")
log = get_logger(__name__)

PAGE: Final = 1000
POLL_SECONDS: Final = 1.0
"""Segments are sealed by size or age, so that nothing is gained by reading each event as it comes."""
_record: Final = Script("archive_record", allow_oom=True)


class State(StrEnum):
    """What a stream's archiver is doing."""

    STARTING = "starting"
    OWNER = "owner"
    STANDBY = "standby"
    """Another process archives the stream."""
    NO_REDIS = "waiting for Redis"
    NO_ARCHIVE = "waiting for the archive"
    REFUSED = "refused"
    """Log and archive do not belong together, or one of them lost something; a person must look."""
    STOPPED = "stopped"


class Limits(msgspec.Struct, frozen=True):
    """A segment is sealed when it has so many bytes before compression, or its first event waited so long."""

    size: int
    seconds: float
    poll: float = POLL_SECONDS
    page: int = PAGE
    """Entries read at once; a segment can be larger than `size` by so many."""


@dataclass(slots=True)
class ArchiveStatus:
    """One stream's archiver, as metrics and health see it. The counts are this process's own."""

    stream: str
    state: State = State.STARTING
    detail: str = ""
    sealed: Manifest | None = None
    segments: int = 0
    events: int = 0
    packed_bytes: int = 0
    plain_bytes: int = 0
    lag_events: int = 0
    oldest_ms: int | None = None
    """Time of the oldest event that is not archived durably."""

    @property
    def lag_seconds(self) -> float:
        """Age of the oldest event that is not archived durably; it grows while storage refuses it."""
        return 0.0 if self.oldest_ms is None else max(0.0, (clock.now_ms() - self.oldest_ms) / 1000)


class Archiver:
    """Archives one stream for as long as this process holds its lease; stands by otherwise."""

    def __init__(
        self, feed: Feed, archive: StreamArchive, limits: Limits, *, keeper: KeyKeeper | None = None
    ) -> None:
        """`keeper`, of the control stream, copies client keys before their events count as archived."""
        self.feed = feed
        self.archive = archive
        self._keeper = keeper
        self.status = ArchiveStatus(feed.stream)
        self._limits = limits
        self._doubted = False
        self._start(None)

    @property
    def owning(self) -> bool:
        """Whether this process holds the stream's lease and knows how far the archive is."""
        return self.status.state in {State.OWNER, State.NO_ARCHIVE} and self.feed.epoch > 0

    async def still_there(self) -> bool:
        """Whether the newest segment can still be found; if not, nothing is put before a look at it all."""
        sealed = self.status.sealed
        if sealed is not None and not await asyncio.to_thread(self.archive.holds, sealed):
            self._doubted = True
        return not self._doubted

    async def run(self, stop: asyncio.Event) -> None:
        """Archive until `stop` is set; never gives up before."""
        waits = backoff()
        while not stop.is_set():
            try:
                await self._own(stop)
                waits = backoff()
                continue
            except LeaseLost as error:
                self._say(State.STANDBY, error)
            except HistoryTrimmed as error:
                self._say(State.REFUSED, _lacking(self.archive, error))
            except (LogRefused, ArchiveDamaged) as error:
                self._say(State.REFUSED, error)
            except (LogUnavailable, LogFull) as error:
                self._say(State.NO_REDIS, error)
            except ArchiveUnavailable as error:
                self._say(State.NO_ARCHIVE, error)
            await self.feed.let_go()
            await sleep_or_stop(next(waits), stop)
        await self.feed.let_go()
        self._say(State.STOPPED)

    # -- Owning -------------------------------------------------------------------------------------------

    async def _own(self, stop: asyncio.Event) -> None:
        """Own the stream until something goes wrong or `stop` is set; returns early when another owns it."""
        if left := await self.feed.acquire():
            # What is left to do is its owner's to know.
            self.status.oldest_ms = None
            self._say(State.STANDBY)
            await sleep_or_stop(min(left, self.feed.ttl_ms / 3000) * random.uniform(0.5, 1), stop)
            return
        # Only now: what a former owner put afterwards has a lower epoch than all that we put.
        sealed = await self._keeping(asyncio.to_thread(self.archive.last))
        if sealed is not None and sealed.epoch >= self.feed.epoch and await self.feed.acquire(sealed.epoch):
            raise LeaseLost(f"The archive lease of stream {self.feed.stream} was taken.")
        if sealed is not None:
            sealed = await self._adopted(sealed)
            await self._keeping(asyncio.to_thread(self.archive.tidy, sealed.number))
        self._start(sealed)
        await self._recorded(sealed)
        if self._keeper is not None:
            await self._keeping(self._keeper.catch_up())
        while not stop.is_set():
            if not await self._step(stop):
                await sleep_or_stop(min(self._limits.poll, self.feed.ttl_ms / 3000), stop)

    async def _adopted(self, sealed: Manifest) -> Manifest:
        """The newest segment, put once more under our epoch where its writer did not live to record it.

        Otherwise another paused writer, later than that one, could still replace what we build on.
        """
        known = await call(self.feed.redis.hmget(self.feed.keys.archive, ["segment", "sha256"]))
        if known == [str(sealed.number).encode(), sealed.sha256.encode()]:
            return sealed
        ours = msgspec.structs.replace(sealed, epoch=self.feed.epoch)
        content = await self._keeping(asyncio.to_thread(self.archive.content, sealed))
        await self._keeping(asyncio.to_thread(self.archive.put_segment, ours, content))
        await self.feed.renew(sealed.end)
        await self._keeping(asyncio.to_thread(self.archive.put_manifest, ours))
        return ours

    def _start(self, sealed: Manifest | None) -> None:
        """Begin the segment after `sealed`."""
        self.status.sealed = sealed
        self._doubted = False
        self._durable = positions.start(self.feed.stream) if sealed is None else sealed.end
        self._at: Position = self._durable
        self._segment = Segment(self.feed.stream)
        self._since = 0.0

    def _events(self) -> int:
        """How many events of the stream were read, from its beginning."""
        return (self.status.sealed.events if self.status.sealed else 0) + self._segment.count

    async def _step(self, stop: asyncio.Event) -> bool:
        """Read once, and seal what has grown large or old. False when the stream has nothing more to give."""
        if self._doubted:
            number = self.status.sealed.number if self.status.sealed else 0
            raise self.archive.damaged(number, "it is missing")
        page = await self.feed.read(self._at, self._events(), self._durable, self._limits.page)
        self._say(State.OWNER)
        if page.entries:
            if self._keeper is not None:
                await self._keeping(self._keeper.follow(page.entries))
            if not self._segment.count:
                self._since = clock.monotonic()
            self._segment.add(page.entries)
            self._at = page.entries[-1].position
        self._measure(page)
        age = clock.monotonic() - self._since
        if self._segment.count and (self._segment.size >= self._limits.size or age >= self._limits.seconds):
            await self._seal(stop)
        return bool(page.entries) and page.last > self._at

    def _measure(self, page: Page) -> None:
        first = self._segment.first
        self.status.lag_events = max(0, page.added - self._events()) + self._segment.count
        self.status.oldest_ms = None if first is None else first.ms

    # -- Sealing ------------------------------------------------------------------------------------------

    async def _seal(self, stop: asyncio.Event) -> None:
        """Make a segment of what was gathered; waits for storage. Raises LeaseLost, LogUnavailable."""
        if not await self._keeping(self.still_there()):
            return
        content, digest = await self._keeping(asyncio.to_thread(self._segment.pack))
        manifest = self._manifest(len(content), digest)
        await self._stored(stop, self.archive.put_segment, manifest, content)
        # The manifest makes it count, so be sure once more.
        await self.feed.renew(self._durable)
        await self._stored(stop, self.archive.put_manifest, manifest)
        await self._recorded(manifest)
        self._start(manifest)
        self.status.segments += 1
        self.status.events += manifest.count
        self.status.packed_bytes += manifest.bytes
        self.status.plain_bytes += manifest.plain_bytes
        log.debug("segment_sealed", stream=manifest.stream, segment=manifest.number, events=manifest.count)

    def _manifest(self, size: int, digest: str) -> Manifest:
        before, segment = self.status.sealed, self._segment
        assert segment.first is not None  # noqa: S101  only what has events is sealed
        assert segment.last is not None  # noqa: S101
        return Manifest(
            log_id=self.archive.log_id,
            stream=self.feed.stream,
            incarnation=self.feed.incarnation,
            number=before.number + 1 if before else 1,
            epoch=self.feed.epoch,
            first=segment.first.entry_id,
            last=segment.last.entry_id,
            count=segment.count,
            events=self._events(),
            plain_bytes=segment.size,
            bytes=size,
            sha256=digest,
            previous=before.sha256 if before else GENESIS,
            sealed_at=clock.iso(clock.now_ms()),
        )

    async def _stored(self, stop: asyncio.Event, put: Callable[..., None], *what: Any) -> None:
        """Put until it succeeds: what was gathered is not read again because a disk is full."""
        for wait in backoff(0.1, self.feed.ttl_ms / 3000):
            try:
                await self._keeping(asyncio.to_thread(put, *what))
            except ArchiveUnavailable as error:
                self._say(State.NO_ARCHIVE, error)
                if await sleep_or_stop(wait, stop):
                    raise
                await self.feed.renew(self._durable)
            else:
                self._say(State.OWNER)
                return

    async def _recorded(self, sealed: Manifest | None) -> None:
        """Let Redis know how far the archive is. Raises LeaseLost, LogUnavailable."""
        keys = self.feed.keys
        await _record(
            self.feed.redis,
            [keys.meta, self.feed.lease, keys.archive],
            [
                self.feed.incarnation,
                self.feed.owner,
                self.feed.epoch,
                sealed.last if sealed else "0-0",
                sealed.events if sealed else 0,
                sealed.number if sealed else 0,
                sealed.sha256 if sealed else GENESIS,
            ],
        )

    async def _keeping(self, work: Awaitable[T]) -> T:
        """Await `work` however long it takes, keeping the lease. Raises LeaseLost."""
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait((task,), timeout=self.feed.ttl_ms / 3000))[0]:
                await self.feed.renew(self._durable)
        finally:
            # A thread cannot be interrupted; what it still puts carries an epoch that no longer counts.
            await asyncio.wait((task,))
            task.exception()
        return task.result()

    def _say(self, state: State, error: BrokerError | None = None) -> None:
        """Record the state; one log line per change, not per attempt."""
        detail = str(error) if error is not None else ""
        if state is not self.status.state:
            level = log.error if state is State.REFUSED else log.info if error is None else log.warning
            level("archive_state", stream=self.feed.stream, state=str(state), detail=detail)
        self.status.state, self.status.detail = state, detail


def _lacking(archive: StreamArchive, error: HistoryTrimmed) -> ArchiveDamaged:
    return ArchiveDamaged(f"{archive.shown} lacks events that the stream no longer has. {error.detail}")
