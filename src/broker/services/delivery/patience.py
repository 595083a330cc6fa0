"""Calls that go on until the log answers, and what is being waited for meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from broker import lifecycle, telemetry
from broker.errors import LogFull, LogUnavailable
from broker.events.connection import GroupMissing
from broker.services.delivery import metrics
from broker.services.delivery.hand import Lane

T = TypeVar("T")
CEILING = 2.0
GROUP_LOOK = 0.05

log = telemetry.get_logger(__name__)


class Patience:
    """Back-off with jitter, and one log line when waiting begins, changes its reason or ends."""

    def __init__(self) -> None:
        self._away: dict[str, str] = {}
        self._said: str | None = None
        self._back = asyncio.Event()

    @property
    def waits_for(self) -> str | None:
        """Why the log does not answer, None when it does."""
        return next(iter(self._away.values()), None)

    async def insist(self, lane: Lane, who: str, call: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        """The call's value, and whether an earlier try may have had its effect without a reply."""
        name = f"{lane.name}:{who}"
        waits = lifecycle.backoff(0.05, CEILING)
        repeated = False
        while True:
            try:
                value = await self._once(lane, call)
            except (LogUnavailable, LogFull) as error:
                lane.steady_since = None
                repeated = True
                self._failed(name, type(error).__name__, str(error))
                await lifecycle.sleep_or_stop(next(waits), self._back)
            except BaseException:
                self._away.pop(name, None)
                raise
            else:
                self._answered(name)
                return value, repeated

    async def _once(self, lane: Lane, call: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await call()
            except GroupMissing:
                await self._make_group(lane)

    async def _make_group(self, lane: Lane) -> None:
        try:
            made = await lane.log.ensure_group([item.claim for item in lane.items.values()])
        except GroupMissing:
            # Another worker has yet to say what it has in hand; it looks at each of its heartbeats.
            await asyncio.sleep(GROUP_LOOK)
            return
        if made:
            metrics.groups_recreated().inc()
            log.warning("delivery_group_recreated", partition=lane.name)

    def _failed(self, name: str, kind: str, reason: str) -> None:
        self._away[name] = reason
        metrics.log_away().set(1)
        if self._said != kind:
            self._said = kind
            log.warning("log_away", error=kind, reason=reason)

    def _answered(self, name: str) -> None:
        if not self._away or self._away.pop(name, None) is None:
            return
        # Whoever finds the log back tells the others, who may be waiting longer.
        self._back.set()
        self._back = asyncio.Event()
        if not self._away:
            self._said = None
            metrics.log_away().set(0)
            log.info("log_back")
