"""Who may call what, health, metrics, the description of the API."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from broker.embedded.valkey import Valkey
from broker.errors import StoreUnavailable
from broker.services.gateway import api as gateway_api
from broker.services.server import api
from broker.web import openapi
from support import contract
from support.calling import Caller
from support.waiting import wait_until

SCHEMAS = Path(__file__).parents[2] / "schemas"
A_MESSAGE = "01890000-0000-7000-8000-000000000000"


def calls(*, bearer: bool) -> list[tuple[str, str]]:
    """Method and path of each operation that takes an access token, or else of the internal ones."""
    wanted = [o for o in api.OPERATIONS if (o.bearer if bearer else o.path.startswith("/internal/"))]
    return [(o.method.upper(), re.sub(r"\{[^}]+\}", A_MESSAGE, o.path)) for o in wanted]


INTERNAL, PEOPLE = calls(bearer=False), calls(bearer=True)


@pytest.mark.case("TC-S-002")
@pytest.mark.parametrize(("method", "path"), INTERNAL)
async def test_internal_calls_need_a_certificate_of_ours(world, server, method, path):
    """Without one 401, with a producer's 403, before the body is even looked at."""
    anonymous = Caller(server.port, world.pki.client_context())
    refused = await anonymous.request(method, path, b"{")
    assert (refused.status, refused.json["error"]) == (401, "client_certificate_required")
    producer = Caller(server.port, world.contexts["demo"])
    refused = await producer.request(method, path, b"{")
    assert (refused.status, refused.json["error"]) == (403, "certificate_purpose")
    ours = Caller(server.port, world.contexts["worker"])
    assert (await ours.request(method, path, b"{")).json["error"] == "malformed_json"


async def test_every_route_is_described(world, server):
    """No route of server or gateway is left out of its document, and none stands there that is not served."""
    assert contract.routes(server.role.app) == contract.described(api.OPERATIONS)
    async with world.gateway() as gateway:
        assert contract.routes(gateway.role.app) == contract.described(gateway_api.OPERATIONS)


@pytest.mark.case("TC-S-017")
@pytest.mark.parametrize(("method", "path"), PEOPLE)
async def test_what_people_do_needs_an_access_token(world, server, method, path):
    """Without a token, with another scheme or rubbish: 401 before the body is looked at. A certificate is none."""
    for name in (None, "internal", "demo"):
        caller = Caller(server.port, world.contexts[name] if name else world.pki.client_context())
        for header in (None, "Bearer", "Bearer ", "Bearer x.y.z", "Basic YTpi", "Bearer a, Bearer b"):
            headers = {} if header is None else {"authorization": header}
            refused = await caller.request(method, path, b"{", headers=headers)
            assert (refused.status, refused.json["error"]) == (401, "unauthorized"), header
            assert refused.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.case("TC-M-012")
async def test_health_needs_no_certificate(world, server):
    """200 with every check, version and uptime."""
    answer = await Caller(server.port, world.pki.client_context()).get("/health")
    assert answer.status == 200
    assert answer.json.keys() == {"status", "version", "timestamp", "checks", "uptime_seconds"}
    assert answer.json["status"] == "healthy"
    assert set(answer.json["checks"]) == {"redis", "log", "trust", "certificate"}


class Gone:
    """A database that cannot be reached."""

    async def ping(self) -> None:
        raise StoreUnavailable


async def test_without_mysql_the_server_is_degraded_and_works(world):
    """200 and `degraded`: what the internal API does not need does not take it away."""
    async with world.server(database=Gone()) as server:
        answer = await Caller(server.port, world.pki.client_context()).get("/health")
    assert (answer.status, answer.json["status"]) == (200, "degraded")
    assert answer.json["checks"]["mysql"] == "The database cannot be reached."


async def test_health_says_what_it_waits_for(world, tmp_path, pki, own_valkey: Valkey):
    """With Redis gone it is 503 and names Redis; with Redis back it is 200 by itself."""
    from broker.events import connection
    from support.world import World

    client = connection.connect(own_valkey.url)
    other = await World(own_valkey.url, client, pki, tmp_path / "other", "own").create()
    async with other.server() as server:
        caller = Caller(server.port, pki.client_context())
        await own_valkey.stop()

        async def status(wanted: int):
            answer = await caller.get("/health")
            return answer if answer.status == wanted else None

        down = await wait_until(lambda: status(503))
        assert down.json["checks"]["log"] == "waits for Redis"
        await own_valkey.start()
        up = await wait_until(lambda: status(200))
        assert up.json["checks"]["redis"] == "ok"
    await client.aclose()


async def test_metrics_need_any_certificate(world, server):
    """Any role of ours may read them; nobody without a certificate."""
    assert (await Caller(server.port, world.pki.client_context()).get("/metrics")).status == 401
    answer = await Caller(server.port, world.contexts["demo"]).get("/metrics")
    assert answer.status == 200
    assert b"broker_http_requests_total" in answer.body


async def test_metrics_can_be_public(world):
    """`metrics_public` opens them."""
    settings = msgspec.structs.replace(world.settings, metrics_public=True)
    async with world.server(settings=settings) as server:
        assert (await Caller(server.port, world.pki.client_context()).get("/metrics")).status == 200


@pytest.mark.parametrize(("name", "made"), [("server", api.document), ("gateway", gateway_api.document)])
def test_the_committed_description_is_the_served_one(name, made):
    """`python -m broker.services.server.api` (and `.gateway.api`) write them again."""
    assert (SCHEMAS / f"openapi-{name}.json").read_bytes() == openapi.encode(made())


async def test_the_description_is_served(world, server):
    """OpenAPI 3.1, without a certificate."""
    answer = await Caller(server.port, world.pki.client_context()).get("/openapi.json")
    assert answer.json == msgspec.json.decode(openapi.encode(api.document()))
    assert answer.json["openapi"].startswith("3.1")
