"""The projector's archiver: the process that holds a stream's archive lease archives and trims it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from broker.events import key_copies
from broker.events.archive import storage
from broker.events.archive.archiver import Archiver, Limits, State
from broker.events.archive.store import StreamArchive
from broker.events.archive.trimming import TRIM_SECONDS, Needs, Trimmer
from broker.events.connection import Redis
from broker.events.feed import Feed
from broker.events.key_copies import KeyKeeper
from broker.events.keys import ARCHIVE_GROUP, LogKeys
from broker.events.log_identity import LogIdentity
from broker.events.positions import Position, start
from broker.projections import checkpoints
from broker.projections.base import Projection
from broker.projections.store import Store
from broker.services.projector import metrics
from broker.settings import Settings
from broker.web.health import Check

LATE_SECONDS = 600.0
"""Held for so much longer than it should be, history that is not cut shows in health."""


class Archiving:
    """Archivers of all streams and the trimmer after them. `pressed`: whether memory runs short."""

    def __init__(
        self,
        settings: Settings,
        owner: str,
        projections: Sequence[Projection],
        *,
        redis: Redis,
        keys: LogKeys,
        identity: LogIdentity,
        store: Store,
        pressed: Callable[[], bool] = lambda: False,
        interval: float = TRIM_SECONDS,
    ) -> None:
        where = storage.opened(settings)
        limits = Limits(settings.archive_segment_mb * 1024 * 1024, settings.archive_segment_seconds)
        copies = key_copies.opened(settings, identity.log_id)
        keeper = KeyKeeper(redis, keys.control, identity.incarnations[keys.control.stream], copies)
        self._identity = identity
        self._store = store
        self._projections = projections
        self._streams = [stream.stream for stream in keys.streams]
        self.archivers = [
            Archiver(
                Feed(
                    redis,
                    stream,
                    identity.incarnations[stream.stream],
                    owner,
                    settings.lease_ttl,
                    group=ARCHIVE_GROUP,
                    lease=stream.archive_lease,
                ),
                StreamArchive(where, identity.log_id, stream.stream),
                limits,
                keeper=keeper if stream is keys.control else None,
            )
            for stream in keys.streams
        ]
        history = round(settings.stream_history * 1000)
        self.trimmer = Trimmer(self.archivers, self.needs, lambda: 0 if pressed() else history, interval)
        self._exporter = metrics.ArchiveExporter()

    async def run(self, stop: asyncio.Event) -> None:
        """Archive and trim until `stop`; leases are released at the end."""
        async with asyncio.TaskGroup() as group:
            for archiver in self.archivers:
                group.create_task(archiver.run(stop))
            group.create_task(self.trimmer.run(stop))

    async def needs(self) -> Mapping[str, Needs]:
        """Where each read model is on each stream; at the start where it has no checkpoint yet.

        Raises StoreUnavailable.
        """
        found: dict[str, dict[str, Position]] = {
            stream: {each.name: start(stream) for each in self._projections if each.wants(stream)}
            for stream in self._streams
        }
        for row in await checkpoints.everything(self._store):
            stream = row.position.stream
            if row.incarnation == self._identity.incarnations.get(stream):
                found[stream][row.projection] = row.position
        return found

    def checks(self) -> dict[str, Check]:
        """What health says; nobody who submits or reads has to wait for any of it."""
        waiting = [
            f"stream {one.stream}: {one.detail if one.state is State.REFUSED else one.state}"
            for one in (archiver.status for archiver in self.archivers)
            if one.state in {State.NO_REDIS, State.NO_ARCHIVE, State.REFUSED}
        ]
        held = [
            f"stream {stream}: nothing cut for {status.overdue_seconds:.0f} s, held by {status.holder}"
            for stream, status in self.trimmer.status.items()
            if status.overdue_seconds > LATE_SECONDS
        ]
        return {
            "archive": Check(ok=not waiting, detail="; ".join(waiting), essential=False),
            "trimming": Check(ok=not held, detail="; ".join(held), essential=False),
        }

    def export(self) -> None:
        """Carry the state into the metrics."""
        for archiver in self.archivers:
            status = self.trimmer.status[archiver.feed.stream]
            self._exporter.export(archiver.status, status, owning=archiver.owning)
