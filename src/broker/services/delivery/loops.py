"""The worker's loops on one partition: read, renew, take over, pump."""

from __future__ import annotations

import asyncio
from functools import partial

from broker import clock, lifecycle, telemetry
from broker.events.connection import BLOCK_MS, Redis
from broker.services.delivery import metrics
from broker.services.delivery.hand import Capacity, Lane
from broker.services.delivery.handler import Handler
from broker.services.delivery.patience import Patience

log = telemetry.get_logger(__name__)

BATCH = 500
TAKEOVER_EVERY = 1.0
LOOK_EVERY = 0.05
COUNT_DUE_EVERY = 5.0
# In times after which an idle claim is taken over.
SWEEP_EVERY = 2


class Loops:
    """The loops share the worker's capacity and its handler. Times in seconds."""

    def __init__(
        self,
        lane: Lane,
        handler: Handler,
        capacity: Capacity,
        patience: Patience,
        *,
        lanes: int,
        claim_ttl: float,
        heartbeat_ttl: float,
    ) -> None:
        self._lane = lane
        self._handler = handler
        self._capacity = capacity
        self._patience = patience
        self._claim_ttl = claim_ttl
        self._heartbeat_ttl = heartbeat_ttl
        self._beat_at: float | None = None
        # What a reader keeps for itself while it waits for news: little, so that a busy one has the rest.
        self._share = max(1, capacity.limit // (4 * lanes))
        self._most = max(1, capacity.limit // 2)
        # With few places, who waits for news must not keep one of them.
        self._block_ms = BLOCK_MS if capacity.limit >= 2 * lanes else 1

    async def prepare(self) -> None:
        """Make the group where there is none yet, and beat: a worker without heartbeat counts as dead."""
        await self._patience.insist(self._lane, "group", self._lane.log.ensure_group)
        await self.beat()

    async def read(self, redis: Redis, stop: asyncio.Event) -> None:
        """Claim new entries until `stop`; `redis` is a connection that nothing else uses."""
        busy = True
        while not stop.is_set():
            await self._beat_if_late()
            places = await self._capacity.reserve(self._most if busy else self._share)
            taken = 0
            try:
                if stop.is_set():
                    break
                block = 1 if busy else self._block_ms
                claims, _ = await self._patience.insist(
                    self._lane, "read", partial(self._lane.log.read, places, redis, block)
                )
                taken = self._handler.take(self._lane, claims)
                busy = bool(claims)
            finally:
                self._capacity.release(places - taken)
            if not busy and self._block_ms < BLOCK_MS:
                await lifecycle.sleep_or_stop(LOOK_EVERY, stop)

    async def renew(self) -> None:
        """Keep heartbeat and claims alive until cancelled."""
        while True:
            await asyncio.sleep(self._heartbeat_ttl / 3)
            await self.beat()

    async def beat(self) -> None:
        """One heartbeat; claims found lost are given up."""
        lane = self._lane
        # Those being settled too: their script call may wait for Redis as well.
        items = list(lane.items.values())
        claims = [item.claim for item in items]
        started = clock.monotonic()
        lost, repeated = await self._patience.insist(
            lane, "renew", lambda: lane.log.renew(claims, round(self._heartbeat_ttl * 1000))
        )
        now = clock.monotonic()
        late = self._beat_at is None or now - self._beat_at > self._heartbeat_ttl
        if late or repeated or lane.steady_since is None:
            lane.steady_since = started if not repeated else now
        self._beat_at = now
        for item, claim in zip(items, claims, strict=True):
            if item.entry in lost and not item.settling and not item.gone and item.claim is claim:
                self._handler.lost(item)

    async def _beat_if_late(self) -> None:
        """After a pause of this process others may take it for dead: first of all, say that it lives."""
        if self._beat_at is not None and clock.monotonic() - self._beat_at > self._heartbeat_ttl:
            await self.beat()

    async def take_over(self, stop: asyncio.Event) -> None:
        """Claim what nobody works on, at once and then every second, until `stop`."""
        waiting = self._lane.claims_wait
        while not stop.is_set():
            waiting.clear()
            await self._beat_if_late()
            if not await self._take_over_once():
                await lifecycle.wait_for(waiting, TAKEOVER_EVERY)

    async def _take_over_once(self) -> bool:
        """Whether there may be more."""
        lane = self._lane
        places = await self._capacity.reserve(self._most)
        suspect = self._handler.suspects.reserve()
        taken = 0
        try:
            claims, _ = await self._patience.insist(
                lane,
                "take_over",
                lambda: lane.log.take_over(
                    round(self._claim_ttl * 1000),
                    places,
                    suspect=suspect,
                    abandoned=self._steady(),
                    leave=self._handler.gates.shut(),
                ),
            )
            taken = self._handler.take(lane, claims)
        finally:
            if suspect:
                self._handler.suspects.unreserve()
            self._capacity.release(places - taken)
        metrics.taken_over().inc(taken)
        metrics.crashes().inc(sum(1 for claim in claims if claim.crashes))
        return taken == places

    def _steady(self) -> bool:
        """Whether others had the time to show that they live.

        After an outage, or right after our own start, expired heartbeats say nothing about their owners.
        """
        since, now = self._lane.steady_since, clock.monotonic()
        # Late ourselves, as after a pause of the whole machine, we cannot tell who else was paused.
        late = self._beat_at is None or now - self._beat_at > self._heartbeat_ttl
        return since is not None and now - since >= self._heartbeat_ttl and not late

    async def pump(self, stop: asyncio.Event) -> None:
        """Turn due retries into events until `stop`; several workers do so side by side."""
        lane = self._lane
        counted_at = 0.0
        while not stop.is_set():
            lane.retry_scheduled.clear()
            (appended, wait), _ = await self._patience.insist(lane, "pump", lambda: lane.log.pump(BATCH))
            if clock.monotonic() - counted_at > COUNT_DUE_EVERY:
                counted_at = clock.monotonic()
                due, _ = await self._patience.insist(lane, "pump", lane.log.retries_due)
                metrics.retries_due(lane.name).set(due)
            if appended < BATCH:
                seconds = 1.0 if wait is None else min(1.0, wait / 1000)
                await lifecycle.wait_for(lane.retry_scheduled, seconds)

    async def sweep(self, stop: asyncio.Event) -> None:
        """Find open messages that are out of reach, now and then until `stop`; several workers may."""
        lane = self._lane
        while not await lifecycle.sleep_or_stop(SWEEP_EVERY * self._claim_ttl, stop):
            (handed_out, gone), _ = await self._patience.insist(lane, "sweep", lane.log.sweep)
            metrics.unreachable().inc(handed_out)
            metrics.entries_gone(lane.name).set(gone)
            if handed_out or gone:
                log.warning("messages_out_of_reach", partition=lane.name, handed_out=handed_out, gone=gone)
            if handed_out:
                lane.claims_wait.set()
