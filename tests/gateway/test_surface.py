"""Health, metrics, rate limits, overload, the description of the API."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from broker.services.gateway import api
from broker.web import openapi
from support.calling import MESSAGE, Caller
from support.waiting import wait_until


@pytest.mark.case("TC-P-006")
async def test_health_needs_no_certificate(world, gateway):
    """200 with every check, version and uptime."""
    answer = await Caller(gateway.port, world.pki.client_context()).get("/api/v1/health")
    assert answer.status == 200
    assert answer.json.keys() == {"status", "version", "timestamp", "checks", "uptime_seconds"}
    assert answer.json["status"] == "healthy"
    assert answer.json["checks"] == dict.fromkeys(("redis", "log", "trust", "certificate"), "ok")


async def test_health_warns_of_a_certificate_that_ends(world):
    """A word in the last two weeks, 503 once it has ended."""
    world.service_ends_ms -= 295 * 86_400_000
    async with world.gateway() as gateway:
        answer = await Caller(gateway.port, world.pki.client_context()).get("/api/v1/health")
        assert (answer.status, answer.json["checks"]["certificate"]) == (200, "ends in 5 days")
    world.service_ends_ms = 1
    async with world.gateway() as gateway:
        answer = await Caller(gateway.port, world.pki.client_context()).get("/api/v1/health")
        assert (answer.status, answer.json["checks"]["certificate"]) == (503, "expired")


@pytest.mark.case("TC-P-007")
async def test_metrics_count_requests(world, gateway, demo):
    """Prometheus text with the hot path's own counts, for any valid certificate."""
    await demo.submit()
    await demo.submit({})
    answer = await demo.get("/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain")
    text = answer.body.decode()
    for status in (202, 400):
        assert (
            f'broker_http_requests_total{{role="gateway",route="/api/v1/messages",status="{status}"}}' in text
        )
    assert 'broker_http_request_seconds_count{role="gateway",route="/api/v1/messages"}' in text


async def test_metrics_can_be_public(world):
    settings = msgspec.structs.replace(world.settings, metrics_public=True)
    async with world.gateway(settings=settings) as gateway:
        anonymous = Caller(gateway.port, world.pki.client_context())
        assert (await anonymous.get("/metrics")).status == 200


def test_every_route_is_described():
    """The description names exactly the routes that the access tests know."""
    described = {(o.method.upper(), o.path, o.certificate) for o in api.OPERATIONS}
    assert described == {
        ("POST", "/api/v1/messages", True),
        ("POST", "/api/v1/messages/batch", True),
        ("GET", "/api/v1/messages/{message_id}", True),
        ("GET", "/api/v1/health", False),
        ("GET", "/metrics", True),
        ("GET", "/openapi.json", False),
    }


async def test_the_description_is_served(world, gateway):
    answer = await Caller(gateway.port, world.pki.client_context()).get("/openapi.json")
    assert answer.json == msgspec.json.decode(openapi.encode(api.document()))


async def test_no_rate_limit_by_default(demo):
    answers = await asyncio.gather(*(demo.submit() for _ in range(50)))
    assert {answer.status for answer in answers} == {202}
    assert not any(name.startswith("ratelimit") for name in answers[0].headers)


async def test_a_rate_limit(world):
    """429 with Retry-After and RateLimit-*, per certificate, and service again as tokens come back."""
    await world.producer("other")
    settings = msgspec.structs.replace(world.settings, rate_limit_per_second=3.0)
    async with world.gateway(settings=settings) as gateway:
        demo, other = (Caller(gateway.port, world.contexts[name]) for name in ("demo", "other"))
        answers = await asyncio.gather(*(demo.submit() for _ in range(20)))
        assert {answer.status for answer in answers} == {202, 429}
        refused = next(answer for answer in answers if answer.status == 429)
        assert refused.json["error"] == "rate_limit_exceeded"
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.headers["ratelimit-limit"] == "3"
        assert refused.headers["ratelimit-remaining"] == "0"
        taken = await other.submit()
        assert (taken.status, taken.headers["ratelimit-remaining"]) == (202, "2")

        async def again() -> bool:
            return (await demo.submit()).status == 202

        await wait_until(again)


async def test_a_batch_costs_what_it_holds(world):
    """A batch beyond the limit goes through once and is paid off after."""
    settings = msgspec.structs.replace(world.settings, rate_limit_per_second=2.0)
    async with world.gateway(settings=settings) as gateway:
        demo = Caller(gateway.port, world.contexts["demo"])
        first = await demo.post("/api/v1/messages/batch", {"messages": [MESSAGE] * 100})
        assert first.status == 202
        refused = await demo.submit()
        assert (refused.status, refused.json["error"]) == (429, "rate_limit_exceeded")
        assert int(refused.headers["retry-after"]) > 30


async def test_more_at_once_than_is_allowed(world):
    """Past the in-flight limit 503 overloaded with Retry-After; what was let in is served."""
    settings = msgspec.structs.replace(world.settings, gateway_in_flight=2)
    async with world.gateway(settings=settings) as gateway:
        demo = Caller(gateway.port, world.contexts["demo"])
        answers = await asyncio.gather(*(demo.submit() for _ in range(60)))
    codes = {answer.status for answer in answers}
    assert 202 in codes
    assert codes <= {202, 503}
    for answer in answers:
        if answer.status == 503:
            assert answer.json["error"] == "overloaded"
            assert int(answer.headers["retry-after"]) >= 1
