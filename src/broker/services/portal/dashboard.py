"""The first page: how today went, the last day by outcome, the latest messages."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker import clock
from broker.projections import activity, listing
from broker.projections.activity import Hour
from broker.projections.listing import Filter
from broker.projections.statistics import HOUR_MS
from broker.services.portal import pages
from broker.services.portal.messages import shown
from broker.services.portal.parts import Parts

_LATEST: Final = 10
_DAY_MS: Final = 24 * HOUR_MS


class Dashboard:
    """The endpoint."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def routes(self) -> list[Route]:
        """The one."""
        return [Route("/", self.read, methods=["GET"])]

    async def read(self, request: Request) -> Response:
        """What the visitor's clients did; an admin's are all. Auditors look at the history instead."""
        visitor = await self._parts.gate(request)
        if visitor.user.role == "auditor":
            return pages.see("/audit")
        store, clients = self._parts.queries.store, visitor.clients
        now = clock.now_ms()
        hours, latest, waiting = await asyncio.gather(
            activity.by_hour(store, now - _DAY_MS, now, clients),
            listing.newest(store, Filter(clients), _LATEST),
            listing.page(store, Filter(clients, status="queued"), per_page=1),
        )
        return pages.render(
            request,
            "dashboard.html",
            hours=hours,
            today=_since_midnight(hours, now),
            waiting=waiting,
            messages=await shown(self._parts, latest),
        )


def _since_midnight(hours: list[Hour], now_ms: int) -> Hour:
    """The sum of today's hours, UTC."""
    midnight = now_ms // _DAY_MS * _DAY_MS
    today = [hour for hour in hours if hour.at >= midnight]
    return Hour(
        midnight,
        sum(hour.submitted for hour in today),
        sum(hour.delivered for hour in today),
        sum(hour.failed for hour in today),
    )
