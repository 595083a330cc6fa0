"""Prometheus metrics: the request counters, the text endpoint, and helpers that make a metric once.

Several processes of a role count together when PROMETHEUS_MULTIPROC_DIR names a directory; it must be set
before prometheus_client is first imported, so the supervisor sets it.
"""

from __future__ import annotations

import os
from functools import cache
from time import perf_counter
from typing import Literal

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
UNMATCHED = "unmatched"


@cache
def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
    """The process's counter of this name, made on first use (several processes: a file is opened then)."""
    return Counter(name, text, labels)


@cache
def gauge(
    name: str, text: str, labels: tuple[str, ...] = (), mode: Literal["livesum", "livemax"] = "livesum"
) -> Gauge:
    """As `counter`; over several processes the live ones' values are added, or the largest is taken."""
    return Gauge(name, text, labels, multiprocess_mode=mode)


@cache
def histogram(
    name: str, text: str, labels: tuple[str, ...] = (), buckets: tuple[float, ...] = BUCKETS
) -> Histogram:
    """As `counter`; buckets in the unit of the name."""
    return Histogram(name, text, labels, buckets=buckets)


def refused(reason: str) -> None:
    """Count a request that was answered before it reached the application."""
    counter(
        "broker_http_refused_total", "Requests refused before the application saw them.", ("reason",)
    ).labels(reason).inc()


def handshake_failed(reason: str) -> None:
    """Count a failed TLS handshake; reasons are a small closed set."""
    counter("broker_tls_handshake_failures_total", "Failed TLS handshakes.", ("reason",)).labels(reason).inc()


def spans(outcome: str, count: int) -> None:
    """Count spans that a collector took (`sent`), or that were `dropped`."""
    counter(
        "broker_trace_spans_total", "Spans for the collector, by what became of them.", ("outcome",)
    ).labels(outcome).inc(count)


def exposition() -> bytes:
    """The metrics of this process, or of all that share the directory, in Prometheus' text format."""
    if os.environ.get(MULTIPROCESS):
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
    return generate_latest(REGISTRY)


def forget(pid: int) -> None:
    """Drop the live gauges of a process that ended."""
    if os.environ.get(MULTIPROCESS):
        mark_process_dead(pid)  # type: ignore[no-untyped-call]


async def endpoint(_request: Request) -> Response:
    """GET /metrics; who may read it is the surface's decision."""
    return Response(exposition(), media_type=CONTENT_TYPE_LATEST)


class RequestMetrics:
    """Pure ASGI middleware. The route label is the route's template, never the path: a bounded set."""

    def __init__(self, app: ASGIApp, role: str) -> None:
        self.app = app
        self._role = role
        self._total = counter("broker_http_requests_total", "Requests answered.", ("role", "route", "status"))
        self._seconds = histogram("broker_http_request_seconds", "Time to answer.", ("role", "route"))
        self._counters: dict[tuple[str, int], Counter] = {}
        self._histograms: dict[str, Histogram] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 499  # nginx's number for a client that left before its answer
        start = perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            self._observe(scope, status, perf_counter() - start)

    def _observe(self, scope: Scope, status: int, seconds: float) -> None:
        route: str = getattr(scope.get("route"), "path", UNMATCHED)
        count = self._counters.get((route, status))
        if count is None:
            count = self._counters[route, status] = self._total.labels(self._role, route, status)
            self._histograms.setdefault(route, self._seconds.labels(self._role, route))
        count.inc()
        self._histograms[route].observe(seconds)
