"""How every surface is put together: routes, errors, metrics, correlation; and the sidecar of workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Lifespan

from broker.web import metrics, problems
from broker.web.correlation import Correlation
from broker.web.health import Checks, Health
from broker.web.limits import Limits
from broker.web.rate_limit import RateLimited, RateLimits
from broker.web.serving import serve


def build(
    routes: Sequence[BaseRoute],
    *,
    role: str,
    lifespan: Lifespan[Starlette] | None = None,
    limits: RateLimits | None = None,
) -> ASGIApp:
    """A Starlette application of these routes inside the layers that all surfaces share."""
    inner = Starlette(routes=routes, exception_handlers=problems.handlers(), lifespan=lifespan)
    # A path with a slash too many is not found; a redirect would make clients send their body twice.
    inner.router.redirect_slashes = False
    return wrap(inner if limits is None else RateLimited(inner, limits), role=role)


def wrap(app: ASGIApp, *, role: str) -> ASGIApp:
    """Any ASGI application inside correlation (outermost), request metrics and the guard."""
    return Correlation(metrics.RequestMetrics(problems.Guard(app), role))


async def serve_sidecar(
    checks: Checks,
    *,
    role: str,
    host: str,
    port: int,
    stop: asyncio.Event,
    on_bound: Callable[[int], None] | None = None,
) -> None:
    """`/metrics` and `/health` in plain HTTP, for processes that serve nothing else."""
    routes = [Route("/metrics", metrics.endpoint), Route("/health", Health(checks).endpoint)]
    await serve(
        build(routes, role=role),
        host=host,
        port=port,
        stop=stop,
        grace=1.0,
        limits=Limits(in_flight=16, connections=64, body_timeout=5.0),
        on_bound=on_bound,
    )
