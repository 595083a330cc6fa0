"""Keep one process running: start it again with a growing wait, ask it how it is, stop it when told to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from broker.clock import monotonic
from broker.embedded.logs import Logs
from broker.embedded.mariadb import MariaDB
from broker.embedded.probe import Health
from broker.embedded.state import Member, created
from broker.embedded.valkey import Valkey
from broker.errors import BrokerError
from broker.lifecycle import backoff, sleep_or_stop

FIRST_WAIT = 0.5
LONGEST_WAIT = 30.0
HEALTHY_AFTER = 60.0  # seconds; a process that ran so long starts afresh with short waits
PROBE_EVERY = 2.0
PROBE_EVERY_AT_START = 0.1
BLOCKED_EVERY = 2.0
START_PATIENCE = 10.0


class Unit(Protocol):
    """What can be kept running."""

    name: str

    @property
    def pid(self) -> int | None: ...
    async def start(self) -> None: ...
    async def wait(self) -> int: ...
    async def stop(self, grace: float) -> None: ...
    async def probe(self) -> Health: ...
    def hurry(self) -> None: ...
    def why(self) -> str: ...
    def blocked(self) -> str | None:
        """Why starting it again now would be in vain; None when it would not."""


class ServerUnit:
    """An embedded server as a unit."""

    def __init__(self, server: Valkey | MariaDB) -> None:
        self.server = server
        self.name = server.name

    @property
    def pid(self) -> int | None:
        return self.server.pid

    async def start(self) -> None:
        await self.server.start()

    async def wait(self) -> int:
        return await self.server.wait()

    async def stop(self, grace: float) -> None:
        await self.server.stop(grace)

    async def probe(self) -> Health:
        ok = await self.server.healthy()
        return Health(ok=ok, detail="" if ok else "no answer")

    def hurry(self) -> None:
        """A server's own end is short, and makes its next start short."""

    def why(self) -> str:
        return self.server.why()

    def blocked(self) -> str | None:
        """A durable server ends when the disk is full, and would again."""
        if self.server.disk_full():
            return f"the disk that holds {self.server.directory} is full; waiting for free space"
        return None


class Keeper:
    """Runs `unit` until `stop`, and keeps `member` true.

    `changed` is called after every change of `member`, `failed` when keeping itself breaks.
    """

    def __init__(
        self,
        unit: Unit,
        member: Member,
        logs: Logs,
        *,
        changed: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self.unit = unit
        self.member = member
        self._logs = logs
        self._changed = changed
        self._failed = failed
        self._was_ok = False
        self._since = monotonic()
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def hurry(self) -> None:
        """Cut the grace period short, once `stop` is under way."""
        self.unit.hurry()

    async def start(self) -> None:
        """Start for the first time, then keep it running. Raises BrokerError when it does not start."""
        await self.unit.start()
        self._started()
        self._tasks = [asyncio.create_task(self._keep()), asyncio.create_task(self._watch())]
        for task in self._tasks:
            task.add_done_callback(self._done)

    async def stop(self, grace: float) -> None:
        """Stop the unit within about `grace` seconds, and do not start it again."""
        self._stop.set()
        # A start that is under way (a server that loads its history) is given up.
        for task in self._tasks:
            if self.unit.pid is None:
                task.cancel()
        await self.unit.stop(grace)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.unit.stop(grace)
        self._set(state="stopped", pid=None, created=None, health="unknown", detail="")

    async def _keep(self) -> None:
        waits = backoff(FIRST_WAIT, LONGEST_WAIT)
        why: str | None = None
        while True:
            if why is None:
                await self.unit.wait()
                why = self.unit.why()
            if self._stop.is_set():
                return
            if monotonic() - self._since > HEALTHY_AFTER:
                waits = backoff(FIRST_WAIT, LONGEST_WAIT)
            self._ended(why)
            await self._pause(next(waits))
            if self._stop.is_set():
                return
            self._since = monotonic()
            try:
                await self.unit.start()
            except (BrokerError, OSError) as error:  # OSError: a full disk, for one
                why = str(error)
            else:
                why = None
                self._started()

    def _done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)

    async def _pause(self, seconds: float) -> None:
        """Wait before the next start, and as long as that would be in vain."""
        await sleep_or_stop(seconds, self._stop)
        said = ""
        while (blocked := self.unit.blocked()) is not None and not self._stop.is_set():
            if blocked != said:
                said = blocked
                self._set(detail=blocked)
                self._logs.event("process_blocked", level="error", process=self.unit.name, reason=blocked)
            await sleep_or_stop(BLOCKED_EVERY, self._stop)

    async def _watch(self) -> None:
        every = PROBE_EVERY_AT_START
        while not self._stop.is_set():
            if self.member.state == "running":
                health = await self.unit.probe()
                if self.member.state == "running":
                    self._heard(health)
                    every = PROBE_EVERY if health.ok else every
            await sleep_or_stop(every, self._stop)

    def _heard(self, health: Health) -> None:
        self._was_ok = self._was_ok or health.ok
        # A process that is just starting is not failing yet.
        patient = not self._was_ok and monotonic() - self._since < START_PATIENCE
        state = "ok" if health.ok else "unknown" if patient else "failing"
        if state not in (self.member.health, "unknown"):
            level = "info" if health.ok else "warning"
            self._logs.event(
                "process_health", level=level, process=self.unit.name, health=state, detail=health.detail
            )
        self._set(
            health=state,
            detail=health.detail,
            lag_events=health.lag_events,
            lag_seconds=health.lag_seconds,
        )

    def _started(self) -> None:
        pid = self.unit.pid
        self._was_ok = False
        self._since = monotonic()
        self._logs.event("process_started", process=self.unit.name, pid=pid, restarts=self.member.restarts)
        self._set(
            state="running", pid=pid, created=created(pid) if pid else None, health="unknown", detail=""
        )

    def _ended(self, why: str) -> None:
        self._logs.event("process_ended", level="error", process=self.unit.name, reason=why)
        self._set(
            state="waiting",
            pid=None,
            created=None,
            health="failing",
            detail=why,
            restarts=self.member.restarts + 1,
        )

    def _set(self, **values: object) -> None:
        if all(getattr(self.member, name) == value for name, value in values.items()):
            return
        for name, value in values.items():
            setattr(self.member, name, value)
        self._changed()
