"""The gateway's routes."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from broker.events.acceptance import Acceptance
from broker.events.trust import Trust
from broker.services.gateway import api, messages
from broker.services.gateway.batch import SubmitBatch
from broker.services.gateway.messages import Entrance, Submit
from broker.services.gateway.status import StatusReader
from broker.web import application, metrics, openapi
from broker.web.admission import Admission
from broker.web.health import Checks, Health
from broker.web.rate_limit import RateLimits

PRODUCERS = ("producer",)
HEALTH = "/api/v1/health"


class Gateway:
    """The ASGI application: POST /api/v1/messages by the short way, all else through the usual layers."""

    def __init__(self, submit: Submit, others: ASGIApp) -> None:
        self._submit = submit
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == messages.PATH and scope["method"] == "POST":
            await self._submit(scope, receive, send)
        else:
            await self._others(scope, receive, send)


def build(
    trust: Trust,
    acceptance: Acceptance,
    status: StatusReader,
    checks: Checks,
    *,
    limits: RateLimits,
    metrics_public: bool = False,
) -> Gateway:
    """The application out of its parts."""
    producers = Admission(trust, PRODUCERS)
    entrance = Entrance(producers, trust, limits)
    anybody = Admission(trust)
    submit = Submit(entrance, acceptance)

    async def read_metrics(request: Request) -> Response:
        if not metrics_public:
            anybody(request.scope)
        return await metrics.endpoint(request)

    async def read_status(request: Request) -> Response:
        producer = producers(request.scope)
        return await status.answer(producer.client_id, request.path_params["message_id"])

    routes = [
        # For the other methods' 405: POST comes by the short way.
        Route(messages.PATH, submit, methods=["POST"]),
        Route("/api/v1/messages/batch", SubmitBatch(entrance, acceptance).endpoint, methods=["POST"]),
        Route("/api/v1/messages/{message_id}", read_status, methods=["GET"]),
        Route(HEALTH, Health(checks).endpoint),
        Route("/metrics", read_metrics),
        Route("/openapi.json", openapi.endpoint(api.document)),
    ]
    return Gateway(submit, application.build(routes, role="gateway", limits=limits))
