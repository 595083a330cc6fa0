"""A world for each test, on the shared Valkey, and a gateway in it."""

from __future__ import annotations

import pytest

from support.calling import Caller
from support.fixtures import pki, pytest_asyncio_loop_factories, world

__all__ = ["pki", "pytest_asyncio_loop_factories", "world"]


@pytest.fixture
async def gateway(world):
    async with world.gateway() as running:
        yield running


@pytest.fixture
def demo(world, gateway) -> Caller:
    """The client `demo`, calling the gateway."""
    return Caller(gateway.port, world.contexts["demo"])
