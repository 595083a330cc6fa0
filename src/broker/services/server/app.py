"""The server's routes."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Scope

from broker.errors import InspectionOnly
from broker.events.registration import Registration
from broker.events.trust import Trust
from broker.services.server import api, docs, wire
from broker.services.server.deliver import Deliver
from broker.services.server.outcomes import Outcomes
from broker.services.server.register import Register
from broker.services.server.status import UpdateStatus
from broker.web import application, metrics, openapi
from broker.web.admission import Admission
from broker.web.health import Checks, Health, version
from broker.web.rate_limit import RateLimits

INTERNAL = ("gateway", "worker", "internal")
HEALTH = "/health"


def build(
    trust: Trust,
    registration: Registration,
    outcomes: Outcomes,
    checks: Checks,
    *,
    partitions: int,
    people: Sequence[BaseRoute] = (),
    limits: RateLimits,
    metrics_public: bool = False,
    inspection: bool = False,
) -> ASGIApp:
    """The application out of its parts; `people` are the routes that take access tokens.

    `inspection`: the internal API refuses, as this is a copy.
    """
    internal = Admission(trust, INTERNAL)
    anybody = Admission(trust)
    status = UpdateStatus(internal, outcomes, partitions)

    async def read_metrics(request: Request) -> Response:
        if not metrics_public:
            anybody(request.scope)
        return await metrics.endpoint(request)

    async def refuse(request: Request) -> Response:
        internal(request.scope)
        raise InspectionOnly

    routes: list[BaseRoute] = [
        *([Route("/internal/{path:path}", refuse, methods=["POST", "PUT"])] if inspection else []),
        Route("/", _welcome),
        Route(HEALTH, Health(checks).endpoint),
        Route("/metrics", read_metrics),
        Route("/openapi.json", openapi.endpoint(api.document)),
        *docs.routes(),
        Route(
            "/internal/messages/register",
            Register(internal, trust, registration, partitions).endpoint,
            methods=["POST"],
        ),
        Route(
            "/internal/messages/deliver", Deliver(internal, outcomes, partitions).endpoint, methods=["POST"]
        ),
        Route("/internal/messages/status", status.post, methods=["POST"]),
        Route("/internal/messages/{message_id}/status", status.put, methods=["PUT"]),
        *people,
    ]
    return application.build(routes, role="server", limits=limits)


def unlimited(scope: Scope) -> bool:
    """Whether no limit of addresses holds: for who watches over the process, and for our own services."""
    path: str = scope["path"]
    return path == HEALTH or (path.startswith("/internal/") and scope["state"].get("peer") is not None)


async def _welcome(_request: Request) -> Response:
    answer = wire.Welcome("message broker", version(), "/docs", "/health")
    return Response(msgspec.json.encode(answer), media_type=openapi.JSON)
