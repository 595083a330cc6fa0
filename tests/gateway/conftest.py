"""A world for each test, on the shared Valkey, and a gateway in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import uvloop

from support.calling import Caller
from support.pki import Pki
from support.world import World


def pytest_asyncio_loop_factories(config, item):
    """The loop that the roles run on; the web layer's tests run on both."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
async def world(valkey, redis, pki, tmp_path: Path, log_name: str) -> World:
    return await World(valkey.url, redis, pki, tmp_path, log_name).create()


@pytest.fixture
async def gateway(world):
    async with world.gateway() as running:
        yield running


@pytest.fixture
def demo(world, gateway) -> Caller:
    """The client `demo`, calling the gateway."""
    return Caller(gateway.port, world.contexts["demo"])
