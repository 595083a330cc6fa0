"""Trimming: what is archived, projected, delivered and older than the history to keep leaves Redis.

The bound is computed in one script on behalf of the archive lease's owner. Checkpoints only ever
grow, so those read just before are never too high.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from broker import clock
from broker.errors import LeaseLost, LogUnavailable, StoreUnavailable
from broker.events import positions
from broker.events.archive.archiver import Archiver, State
from broker.events.archive.storage import ArchiveUnavailable
from broker.events.keys import DELIVERY_GROUP, PartitionKeys
from broker.events.positions import Position
from broker.events.scripting import Arg, Script
from broker.lifecycle import sleep_or_stop

TRIM_SECONDS: Final = 5.0
BODIES: Final = 500
"""Bodies moved aside in a call, at most: it must not hold up appends."""
_trim: Final = Script("trim", allow_oom=True)

_OTHERS: Final = frozenset({State.STARTING, State.STANDBY, State.STOPPED})

Needs = Mapping[str, Position]
"""Who needs a stream, and from which position on; from its start: everything."""


@dataclass(slots=True)
class TrimStatus:
    """What trimming does on one stream; `holder` and `overdue_seconds` tell what keeps it from cutting."""

    removed: int = 0
    """Events cut by this process."""
    moved: int = 0
    """Bodies of long-open messages moved aside by this process."""
    bound: Position | None = None
    holder: str = ""
    overdue_seconds: float = 0.0
    """How much older than the history to keep the oldest event is that is still held."""
    looked_at: float = field(default_factory=clock.monotonic)

    def wait(self, *, others: bool) -> None:
        """Nothing could be cut. Unless another process does it, what is held grows older meanwhile."""
        now = clock.monotonic()
        self.holder = "" if others else "archive"
        self.overdue_seconds = 0.0 if others else self.overdue_seconds + now - self.looked_at
        self.looked_at = now


class Trimmer:
    """Trims the streams whose archive leases are held here.

    `needs` answers what the read models need, by stream; raises StoreUnavailable. `keep` says how many
    milliseconds of history stay.
    """

    def __init__(
        self,
        archivers: Sequence[Archiver],
        needs: Callable[[], Awaitable[Mapping[str, Needs]]],
        keep: Callable[[], int],
        interval: float = TRIM_SECONDS,
    ) -> None:
        self.status = {archiver.feed.stream: TrimStatus() for archiver in archivers}
        self._archivers = archivers
        self._needs = needs
        self._keep = keep
        self._interval = interval

    async def run(self, stop: asyncio.Event) -> None:
        """Trim again and again until `stop`."""
        while not await sleep_or_stop(self._interval, stop):
            await self.round()

    async def round(self) -> None:
        """Trim each stream once, as far as Redis can be reached; without the database nothing is cut."""
        needs: Mapping[str, Needs] | None
        try:
            needs = await self._needs()
        except StoreUnavailable:
            needs = None
        for archiver in self._archivers:
            stream = archiver.feed.stream
            own = {"database": positions.start(stream)} if needs is None else needs.get(stream, {})
            try:
                if archiver.owning:
                    await self.trim(archiver, own)
                    continue
            except (LeaseLost, LogUnavailable):
                # The archiver of the stream meets the same and says so.
                pass
            self.status[stream].wait(others=archiver.status.state in _OTHERS)

    async def trim(self, archiver: Archiver, needs: Needs) -> int:
        """Cut one stream now; how many events. Raises LeaseLost, LogUnavailable, LogRefused."""
        feed, keys = archiver.feed, archiver.feed.keys
        held = dict(needs)
        try:
            vouched = await archiver.still_there()
        except ArchiveUnavailable:
            vouched = False
        if not vouched:
            # An archive that was removed vouches for nothing.
            held["archive"] = positions.start(feed.stream)
        names = [keys.meta, feed.lease, keys.events, keys.archive]
        group = ""
        if isinstance(keys, PartitionKeys):
            names += (keys.open, keys.age, keys.bodies)
            group = DELIVERY_GROUP
        args: list[Arg] = [feed.incarnation, feed.owner, feed.epoch, group, self._keep(), BODIES]
        for who, position in held.items():
            args += (who, position.entry_id)
        cut, bound, holder, overdue, moved = await _trim(feed.redis, names, args)
        status = self.status[feed.stream]
        status.looked_at = clock.monotonic()
        status.removed += int(cut)
        status.moved += int(moved)
        status.bound = positions.at(feed.stream, bound)
        status.holder, status.overdue_seconds = holder.decode(), int(overdue) / 1000
        return int(cut)
