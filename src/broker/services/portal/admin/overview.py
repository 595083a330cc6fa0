"""The whole pipeline at a glance, live. One sample a second or two serves all who look."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker import clock
from broker.domain import certificates
from broker.events import backlog, key_holders, standing
from broker.events.backlog import Backlog
from broker.events.standing import Memory
from broker.projections import condition, mending, overview
from broker.projections.condition import Projection
from broker.projections.statistics import HOUR_MS
from broker.services.portal import pages
from broker.services.portal.live import Live, Shown
from broker.services.portal.parts import Parts

EVERY_SECONDS: Final = 2.0
_STALE_SECONDS: Final = 30.0
_DAY_MS: Final = 24 * HOUR_MS


class Rates(msgspec.Struct, frozen=True):
    """Messages a second since the sample before."""

    accepted: float
    delivered: float
    failed: float


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What the overview shows; `rates` are None until there are two samples to compare."""

    rates: Rates | None
    backlog: Backlog
    parked: int
    alive: dict[str, int]
    """Processes by role; who was killed counts for half a minute more, a projector while it has a stream."""
    memory: Memory
    expiring: int
    delivery: overview.Delivery
    projections: list[Projection]


class _Counts(msgspec.Struct, frozen=True):
    at: float
    accepted: int
    delivered: int
    failed: int


class Sampler:
    """Takes a sample when the last one is too old. Raises StoreUnavailable, LogUnavailable."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._lock = asyncio.Lock()
        self._since = 0
        self._counts: _Counts | None = None
        self._taken = 0.0
        self._last: Sample | None = None

    async def __call__(self) -> Sample:
        """The newest sample."""
        async with self._lock:
            if self._last is None or clock.monotonic() - self._taken > EVERY_SECONDS * 0.75:
                self._last = await self._look()
                self._taken = clock.monotonic()
            return self._last

    async def _look(self) -> Sample:
        parts, store = self._parts, self._parts.queries.store
        open_now, alive, memory = await asyncio.gather(
            backlog.measure(parts.redis, parts.keys, parts.identity),
            self._alive(),
            standing.memory(parts.redis),
        )
        found, reasons, figures, rates = await asyncio.gather(
            condition.look(store, parts.redis, parts.keys),
            mending.reasons(store),
            overview.figures(store, "hour"),
            self._rates(),
        )
        return Sample(
            rates=rates,
            backlog=open_now,
            parked=sum(reason.count for reason in reasons),
            alive=alive,
            memory=memory,
            expiring=self._expiring(),
            delivery=figures.delivery,
            projections=found,
        )

    async def _alive(self) -> dict[str, int]:
        redis, keys = self._parts.redis, self._parts.keys
        said, workers, streams = await asyncio.gather(
            key_holders.holders(redis, keys.control),
            standing.workers(redis, keys),
            standing.look(redis, keys),
        )
        owners = {each.owner for each in streams.values() if each.owner is not None}
        return dict(key_holders.roles(said)) | {"worker": workers, "projector": len(owners)}

    async def _rates(self) -> Rates | None:
        """From the totals of the statistics, counted from one hour on so that two samples compare."""
        now = clock.now_ms()
        if now - self._since > _DAY_MS:
            self._since, self._counts = now // HOUR_MS * HOUR_MS - HOUR_MS, None
        row = (await self._parts.queries.store.select(overview.counts_query(self._since)))[0]
        submitted, delivered, failed = (int(row[name] or 0) for name in ("submitted", "delivered", "failed"))
        before, self._counts = self._counts, _Counts(clock.monotonic(), submitted, delivered, failed)
        if before is None or self._counts.at - before.at > _STALE_SECONDS:
            return None
        seconds = max(0.001, self._counts.at - before.at)
        return Rates(
            (submitted - before.accepted) / seconds,
            (delivered - before.delivered) / seconds,
            (failed - before.failed) / seconds,
        )

    def _expiring(self) -> int:
        now = clock.now_ms()
        ahead = now + self._parts.settings.certificate_warning_days * _DAY_MS
        return sum(
            certificates.is_active(each, now) and each.not_after_ms <= ahead
            for each in self._parts.trust.certificates()
        )


class Overview:
    """The endpoints."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._sampler = Sampler(parts)
        self._live = Live(parts, "admin", seconds=EVERY_SECONDS)

    def routes(self) -> list[Route]:
        """Both."""
        return [
            Route("/admin", self.read, methods=["GET"]),
            Route("/admin/live", self.live, methods=["GET"]),
        ]

    async def read(self, request: Request) -> Response:
        """The figures as they are, which then update themselves."""
        await self._parts.gate(request, "admin")
        return pages.render(request, "overview.html", now=await self._sampler())

    async def live(self, request: Request) -> Response:
        """The figures every two seconds, as server-sent events, for as long as the session holds."""
        return await self._live(request, "/admin", lambda *_: self._figures)

    async def _figures(self) -> Shown:
        return Shown(pages.fragment("figures.html", now=await self._sampler()))
