"""GET /admin/stats: the system's figures."""

from __future__ import annotations

from typing import Final, get_args

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from broker import clock
from broker.events import backlog
from broker.events.connection import Redis
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.projections import overview
from broker.services.server.bearer import Bearer
from broker.services.server.reading import wire
from broker.services.server.reading.models import Models
from broker.web.parameters import Query

PERIODS: Final[tuple[str, ...]] = get_args(overview.Period)


class Stats:
    """The endpoint."""

    def __init__(
        self, bearer: Bearer, models: Models, redis: Redis, keys: LogKeys, identity: LogIdentity
    ) -> None:
        self._admins = bearer.only("admin")
        self._models = models
        self._redis = redis
        self._keys = keys
        self._identity = identity

    async def read(self, request: Request) -> Response:
        """The figures of a period, with what is open now and how far the read models are behind."""
        await self._admins(request.scope)
        query = Query(request, ("period",))
        period = msgspec.convert(query.choice("period", PERIODS, "day"), overview.Period)
        found = await overview.figures(self._models.store, period)
        waiting = await backlog.measure(self._redis, self._keys, self._identity)
        lags = await overview.lags(self._models.store, self._redis, self._keys)
        answer = wire.Stats(
            period=period,
            since=clock.iso(found.since),
            total_messages=found.total_messages,
            messages_by_status=wire.ByStatus(waiting.open, found.delivered, found.failed),
            total_clients=found.total_clients,
            active_clients=found.active_clients,
            messages_last_24h=found.messages_last_24h,
            open_messages=waiting.open,
            overdue_retries=waiting.overdue,
            delivery=found.delivery,
            projections=[
                wire.ProjectionLag(each.projection, each.stream, each.events, each.seconds, each.halted)
                for each in lags
            ],
        )
        return Response(
            msgspec.json.encode(answer),
            headers={"cache-control": "no-store"},
            media_type="application/json",
        )
