"""The worker: claims messages on every partition, hands them to their channels, records what came of it."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Mapping
from typing import Any

import msgspec

from broker import clock, telemetry
from broker.domain.retry import RetryPolicy
from broker.errors import BrokerError
from broker.events.connection import BLOCK_MS, Redis, connect
from broker.events.delivery_log import DeliveryLog
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.services.delivery import metrics
from broker.services.delivery.channels.base import Channel
from broker.services.delivery.committer import Committer
from broker.services.delivery.hand import Capacity, Lane
from broker.services.delivery.handler import Handler
from broker.services.delivery.loops import Loops
from broker.services.delivery.patience import Patience
from broker.services.delivery.routes import Clients, Opener, Routes

log = telemetry.get_logger(__name__)

# What the end of the grace period is kept for: handing back what is not finished.
RELEASE_SECONDS = 2.0


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker behaves. Times in seconds. What others have to do alike is always said."""

    concurrency: int = 256
    claim_ttl: float = 30.0
    heartbeat_ttl: float = 10.0
    crash_limit: int = 3
    grace: float = 20.0
    default_channel: str = "inbox"
    outcomes_kept_ms: int
    retry: RetryPolicy


def new_worker_id() -> str:
    """`w` and 8 base32 characters, unique per process start."""
    return "w" + base64.b32encode(secrets.token_bytes(5)).decode().lower()


class Worker:
    """One process's deliveries. `run` until told to stop; see `waits_for` for what keeps it from working."""

    def __init__(
        self,
        *,
        redis: Redis,
        redis_url: str,
        keys: LogKeys,
        identity: LogIdentity,
        clients: Clients,
        opener: Opener,
        channels: Mapping[str, Channel],
        limits: Limits,
        redis_timeout: float = 5.0,
        worker_id: str | None = None,
    ) -> None:
        self.worker_id = worker_id or new_worker_id()
        self.limits = limits
        self.channels = channels
        self._redis_url = redis_url
        self._redis_timeout = redis_timeout
        metrics.declare(channels, [partition.stream for partition in keys.partitions])
        self.patience = Patience()
        self.capacity = Capacity(limits.concurrency)
        self.handler = Handler(
            actor=f"worker:{self.worker_id}",
            routes=Routes(clients, opener, limits.default_channel, self.worker_id),
            channels=channels,
            policy=limits.retry,
            crash_limit=limits.crash_limit,
            capacity=self.capacity,
            patience=self.patience,
            gate_closed=self._look_for_claims,
        )
        kept = limits.outcomes_kept_ms
        self.lanes = [
            self._lane(DeliveryLog(redis, partition, identity, self.worker_id, outcomes_kept_ms=kept))
            for partition in keys.partitions
        ]
        self._loops = [
            Loops(
                lane,
                self.handler,
                self.capacity,
                self.patience,
                lanes=len(self.lanes),
                claim_ttl=limits.claim_ttl,
                heartbeat_ttl=limits.heartbeat_ttl,
            )
            for lane in self.lanes
        ]

    def _lane(self, delivery_log: DeliveryLog) -> Lane:
        lane = Lane(delivery_log)
        lane.committer = Committer(lane, self.patience, self.handler.settled, self.handler.fail)
        return lane

    def _look_for_claims(self) -> None:
        for lane in self.lanes:
            lane.claims_wait.set()

    @property
    def in_hand(self) -> int:
        """Messages claimed and not yet settled."""
        return self.handler.in_hand

    @property
    def waits_for(self) -> dict[str, str]:
        """What is away and why: `log`, `channel:inbox`, `client:…`; empty when all is well."""
        away = self.patience.waits_for
        return ({"log": away} if away is not None else {}) | self.handler.gates.waits_for

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until `stop`, then finish what is in hand within the grace period and hand back the rest.

        Raises whatever defect ended one of its loops.
        """
        log.info("worker_started", worker=self.worker_id, partitions=len(self.lanes))
        quitting = asyncio.Event()
        readers = [connect(self._redis_url, timeout=self._redis_timeout, pool=1) for _ in self.lanes]
        tasks: dict[str, list[asyncio.Task[None]]] = {"intake": [], "renew": []}
        self.handler.on_failure = stop.set
        try:
            starting = asyncio.ensure_future(self._start(quitting, readers, tasks, stop))
            await stop.wait()
            deadline = clock.monotonic() + self.limits.grace
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            quitting.set()
            await self._stop_intake(tasks["intake"])
            await self._finish(deadline)
            await self._hand_back(tasks["renew"], deadline)
        finally:
            everything = [task for group in tasks.values() for task in group]
            for task in everything:
                task.cancel()
            results = await asyncio.gather(*everything, return_exceptions=True)
            for reader in readers:
                await reader.aclose()
            for channel in self.channels.values():
                await channel.aclose()
        log.info("worker_stopped", worker=self.worker_id)
        for result in [self.handler.failed, *results]:
            if isinstance(result, Exception):
                raise result

    async def _start(
        self,
        quitting: asyncio.Event,
        readers: list[Redis],
        tasks: dict[str, list[asyncio.Task[None]]],
        stop: asyncio.Event,
    ) -> None:
        async def run_lane(loops: Loops, reader: Redis) -> None:
            await loops.prepare()
            tasks["renew"].append(self._task(loops.renew(), stop))
            for loop in (
                loops.read(reader, quitting),
                loops.take_over(quitting),
                loops.pump(quitting),
                loops.sweep(quitting),
            ):
                tasks["intake"].append(self._task(loop, stop))

        await asyncio.gather(*(run_lane(*pair) for pair in zip(self._loops, readers, strict=True)))

    def _task(self, coroutine: Any, stop: asyncio.Event) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)

        def ended(done: asyncio.Task[None]) -> None:
            if not done.cancelled() and done.exception() is not None:
                stop.set()

        task.add_done_callback(ended)
        return task

    async def _stop_intake(self, tasks: list[asyncio.Task[None]]) -> None:
        """Let reads that block come back by themselves: what they claimed is then in hand."""
        for lane in self.lanes:
            lane.retry_scheduled.set()
            lane.claims_wait.set()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=min(BLOCK_MS / 1000 + 0.5, self.limits.grace / 2))
            for task in late:
                task.cancel()

    async def _finish(self, deadline: float) -> None:
        """Wait until only held messages are in hand, or the grace period ends."""
        while clock.monotonic() < deadline - min(RELEASE_SECONDS, self.limits.grace / 2):
            if self.in_hand == len(self.handler.gates.items()):
                return
            await asyncio.sleep(0.005)

    async def _hand_back(self, renewing: list[asyncio.Task[None]], deadline: float) -> None:
        await self.handler.aclose()
        for task in renewing:
            task.cancel()
        try:
            async with asyncio.timeout(max(0.5, deadline - clock.monotonic())):
                await asyncio.gather(*(self._leave(lane) for lane in self.lanes))
        except (TimeoutError, BrokerError) as error:
            # Our heartbeat ends by itself; others then take over what is left.
            log.warning("claims_not_handed_back", count=self.in_hand, reason=str(error))

    async def _leave(self, lane: Lane) -> None:
        await lane.committer.aclose()
        items = list(lane.items.values())
        await lane.log.release([item.claim for item in items], leaving=True)
        for item in items:
            self.handler.drop(item)
