"""One projector process out of ready-made parts: a runner for every stream, lag, metrics, archiving."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence

from broker.errors import LogUnavailable, StoreUnavailable
from broker.events.connection import Redis
from broker.events.feed import Feed
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.lifecycle import sleep_or_stop
from broker.projections import catalog, lag
from broker.projections.base import Projection
from broker.projections.runner import StreamRunner
from broker.projections.status import State
from broker.projections.store import Store
from broker.services.projector import metrics
from broker.services.projector.archiving import Archiving
from broker.settings import Settings
from broker.web.application import serve_sidecar
from broker.web.health import Check

LAG_SECONDS = 1.0


class Projector:
    """Projects every stream of the log that no other projector owns, until told to stop."""

    def __init__(
        self,
        settings: Settings,
        *,
        redis: Redis,
        keys: LogKeys,
        identity: LogIdentity,
        store: Store,
        projections: Sequence[Projection] | None = None,
        owner: str | None = None,
        archiving: Callable[[str, Sequence[Projection]], Archiving] | None = None,
    ) -> None:
        self._settings = settings
        self._redis = redis
        self._store = store
        self._exporter = metrics.Exporter()
        self._database_answers = True
        # Unique per process start: after a restart, the old lease is another's.
        self.owner = owner or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        wanted = catalog.projections() if projections is None else projections
        self.runners = [
            StreamRunner(
                Feed(redis, stream, identity.incarnations[stream.stream], self.owner, settings.lease_ttl),
                store,
                wanted,
                settings.projector_batch,
            )
            for stream in keys.streams
            if any(each.wants(stream.stream) for each in wanted)
        ]
        for runner in self.runners:
            runner.status.on_batch = metrics.observe_batch
        self.archiving = None if archiving is None else archiving(self.owner, wanted)

    async def run(self, stop: asyncio.Event, on_bound: Callable[[int], None] | None = None) -> None:
        """Run until `stop`; leases are released at the end. Raises what a runner did not foresee."""
        try:
            async with asyncio.TaskGroup() as group:
                for runner in self.runners:
                    group.create_task(runner.run(stop))
                group.create_task(self._watch(stop))
                if self.archiving is not None:
                    group.create_task(self.archiving.run(stop))
                group.create_task(
                    serve_sidecar(
                        self.checks,
                        role="projector",
                        host=self._settings.metrics_host,
                        port=self._settings.projector_metrics_port,
                        stop=stop,
                        on_bound=on_bound,
                    )
                )
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        finally:
            await self._store.close()

    async def checks(self) -> Mapping[str, Check]:
        """What health says: what is waited for, which projections stand still."""
        found = {"redis": Check(ok=True), "mysql": Check(ok=True), "log": Check(ok=True)}
        names = {State.NO_REDIS: "redis", State.NO_MYSQL: "mysql", State.REFUSED: "log"}
        for runner in self.runners:
            status = runner.status
            if (name := names.get(status.state)) is not None:
                # The drivers' words name addresses; those are for the log.
                detail = status.detail if status.state is State.REFUSED else str(status.state)
                found[name] = Check(ok=False, detail=detail)
        if not self._database_answers:
            # An idle owner would notice with the next event only.
            found["mysql"] = Check(ok=False, detail=str(State.NO_MYSQL))
        started = not any(runner.status.state is State.STARTING for runner in self.runners)
        found["streams"] = Check(ok=started, detail="" if started else "not all streams were looked at yet")
        halted = [
            f"{name} on stream {runner.stream}: {projection.halted}"
            for runner in self.runners
            for name, projection in runner.status.projections.items()
            if projection.halted is not None and runner.status.state is State.OWNER
        ]
        found["projections"] = Check(ok=not halted, detail="; ".join(halted))
        return found if self.archiving is None else found | self.archiving.checks()

    async def _watch(self, stop: asyncio.Event) -> None:
        """Measure the lag, ask the database, and export the metrics, every second."""
        while not stop.is_set():
            try:
                await self._store.ping()
            except StoreUnavailable:
                self._database_answers = False
            else:
                self._database_answers = True
            for runner in self.runners:
                if at := runner.checkpoints():
                    try:
                        for each in await lag.measure(self._redis, runner.feed.keys, tuple(at.values())):
                            projection = runner.status.projection(each.projection)
                            projection.lag_events, projection.lag_seconds = each.events, each.seconds
                    except LogUnavailable:
                        # The runner says so; the last known lag stays.
                        pass
                self._exporter.export(runner.status)
            if self.archiving is not None:
                self.archiving.export()
            await sleep_or_stop(LAG_SECONDS, stop)
