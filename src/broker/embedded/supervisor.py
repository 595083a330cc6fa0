"""`up`: set up what is missing, run every process in order, stop them in order."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from broker.clock import monotonic
from broker.embedded import leftovers, ports
from broker.embedded.keeper import Keeper, ServerUnit
from broker.embedded.logs import Logs
from broker.embedded.plan import Planned, claims, plan, with_ports
from broker.embedded.process import EmbeddedError
from broker.embedded.role import RoleProcess
from broker.embedded.state import STOP_ORDER, Member, RunLock, State, created, save
from broker.embedded.summary import summary
from broker.embedded.urls import mariadb, resolve, valkey
from broker.errors import StoreUnavailable
from broker.settings import Settings, safe_url

START_TIMEOUT = 90.0
RESTARTS_AT_START = 3
SERVER_GRACE = 30.0


class Reporter(Protocol):
    """Tells people what goes on."""

    def step(self, text: str) -> None:
        """A step of the set-up begins."""

    def line(self, text: str) -> None:
        """Something to keep on the screen."""


class Supervisor:
    """Runs once. `state` is what `status` shows, written to `run/state.json` at every change."""

    def __init__(self, settings: Settings, reporter: Reporter, logs: Logs) -> None:
        self.settings = settings
        self.reporter = reporter
        self.logs = logs
        pid = os.getpid()
        self.state = State(
            pid=pid,
            created=created(pid) or 0.0,
            data_dir=str(settings.data_dir.absolute()),
            inspection=settings.inspection,
        )
        self.ready: Callable[[list[str]], None] = lambda _lines: None
        self._keepers: list[Keeper] = []
        self._failure: BaseException | None = None
        self._ending = asyncio.Event()
        self._unwritable = False

    async def run(self, stop: asyncio.Event, hurry: asyncio.Event) -> None:
        """Return after `stop` was set and everything has ended; `hurry` cuts the grace periods short.

        Raises BrokerError when something does not start; what had been started is stopped again by then.
        """
        with RunLock(self.settings.data_dir):
            try:
                if await self._until(stop, self._start()):
                    self.state.phase = "running"
                    self.state.summary += summary(self.settings, self.state.members)
                    self._changed()
                    self.ready(self.state.summary)
                    await self._until(stop, self._ending.wait())
                if self._failure is not None:
                    raise self._failure
            except BaseException as error:
                self.state.error = str(error) or type(error).__name__
                raise
            finally:
                await self._stop_all(hurry)
                self.state.phase = "failed" if self.state.error else "stopped"
                self._changed()

    @staticmethod
    async def _until(stop: asyncio.Event, work: Coroutine[Any, Any, object]) -> bool:
        """Run `work`, given up when `stop` is set; whether it was finished."""
        task = asyncio.create_task(work)
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if task.done():
            await task
            return True
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        return False

    async def _start(self) -> None:
        self._changed()
        for gone in await leftovers.reap(self.settings):
            self._step(f"Ended {gone}, left by an earlier run")
        self.settings = with_ports(self.settings)
        ports.check(claims(self.settings))
        await self._ask_own_servers()
        await self._start_servers()
        self.settings = resolve(self.settings)
        await self._prepare()
        planned = plan(self.settings)
        for directory in {one.environ.get("PROMETHEUS_MULTIPROC_DIR") for one in planned} - {None}:
            _empty(Path(str(directory)))
        self._step("Starting " + ", ".join(one.name for one in planned))
        for one in planned:
            await self._keep_role(one)
        await self._all_healthy()

    async def _ask_own_servers(self) -> None:
        """Servers of the user's own come first: what is wrong there is said before anything starts."""
        settings = self.settings
        if settings.redis_url is not None:
            from broker.bootstrap import check_redis

            self._step(f"Looking at Redis ({safe_url(settings.redis_url)})")
            await check_redis(settings)
        if settings.mysql_url is not None:
            from broker.projections.schema import revisions

            shown = safe_url(settings.mysql_url)
            self._step(f"Looking at MySQL ({shown})")
            try:
                await asyncio.to_thread(revisions, settings.mysql_url)
            except StoreUnavailable as error:
                raise EmbeddedError(
                    f"MySQL at {shown} cannot be used: {error.detail} Start it, make its database and user, "
                    "or correct mysql_url (BROKER_MYSQL_URL)."
                ) from error

    async def _start_servers(self) -> None:
        """The embedded servers for which no address is set."""
        from broker.bootstrap import check_restored

        check_restored(self.settings)
        servers: list[ServerUnit] = []
        if self.settings.mysql_url is None:
            from broker.embedded.install import ensure_mariadb

            loop = asyncio.get_running_loop()

            def progress(text: str) -> None:
                loop.call_soon_threadsafe(self._step, text)

            await asyncio.to_thread(ensure_mariadb, progress)
            database = mariadb(self.settings)
            first = "" if database.data.exists() else " (first use: making its data directory)"
            self._step(f"Starting MariaDB{first}")
            servers.append(ServerUnit(database))
        if self.settings.redis_url is None:
            self._step("Starting Valkey")
            servers.append(ServerUnit(valkey(self.settings)))
        keepers = [self._keeper(unit, unit.name) for unit in servers]
        await asyncio.gather(*(keeper.start() for keeper in keepers))

    async def _prepare(self) -> None:
        from broker.bootstrap import prepare
        from broker.projections.schema import migrate

        self._step("Bringing the database schema up to date")
        await asyncio.to_thread(migrate, str(self.settings.mysql_url))
        self._step("Log, keys, certificates, first admin")
        for line in await prepare(self.settings):
            self.state.steps.append(f"  {line}")
            self.reporter.line(line)

    async def _keep_role(self, planned: Planned) -> None:
        keeper = self._keeper(RoleProcess(planned, self.logs), planned.role)
        keeper.member.url = planned.target.url
        await keeper.start()

    def _keeper(self, unit: ServerUnit | RoleProcess, role: str) -> Keeper:
        member = Member(name=unit.name, role=role)
        self.state.members.append(member)
        keeper = Keeper(unit, member, self.logs, changed=self._changed, failed=self._broken)
        self._keepers.append(keeper)
        return keeper

    async def _all_healthy(self) -> None:
        """Wait until every process is well. Raises EmbeddedError when one keeps ending or takes too long."""
        deadline = monotonic() + START_TIMEOUT
        while True:
            waiting = [member for member in self.state.members if member.health != "ok"]
            if not waiting:
                return
            for member in waiting:
                if member.restarts >= RESTARTS_AT_START:
                    raise EmbeddedError(f"{member.name} does not stay up. {member.detail}")
            if monotonic() > deadline:
                states = "; ".join(f"{one.name}: {one.detail or one.health}" for one in waiting)
                raise EmbeddedError(
                    f"Not healthy after {START_TIMEOUT:.0f} s: {states}. See {self.logs.directory}."
                )
            await asyncio.sleep(0.02)

    async def _stop_all(self, hurry: asyncio.Event) -> None:
        self.state.phase = "stopping"
        self._changed()
        if self._keepers:
            self.reporter.step("Stopping")
        for role in STOP_ORDER:
            embedded = role in ("mariadb", "valkey")
            grace = SERVER_GRACE if embedded else self.settings.grace_period + 2
            stage_keepers = [keeper for keeper in self._keepers if keeper.member.role == role]
            await self._stop_stage(stage_keepers, grace, hurry)

    @staticmethod
    async def _stop_stage(keepers: Sequence[Keeper], grace: float, hurry: asyncio.Event) -> None:
        stopping = asyncio.gather(*(keeper.stop(grace) for keeper in keepers))
        hurried = asyncio.create_task(hurry.wait())
        waiting: set[asyncio.Future[Any]] = {stopping, hurried}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not stopping.done():
            for keeper in keepers:
                keeper.hurry()
        await stopping

    def _broken(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._ending.set()

    def _step(self, text: str) -> None:
        self.state.steps.append(text)
        self.reporter.step(text)
        self._changed()

    def _changed(self) -> None:
        """Write the state; on a full disk say so once and go on: stopping everything would help nobody."""
        try:
            save(self.state, self.settings.data_dir)
        except OSError as error:
            if not self._unwritable:
                self.logs.event("state_not_written", level="error", reason=str(error))
            self._unwritable = True
        else:
            self._unwritable = False


def _empty(directory: Path) -> None:
    """Metrics of processes that are gone must not be counted."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
