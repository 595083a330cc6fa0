"""A world for each test, on the shared Valkey, and a server in it."""

from __future__ import annotations

import pytest

from support.calling import Caller
from support.fixtures import pki, pytest_asyncio_loop_factories, world

__all__ = ["pki", "pytest_asyncio_loop_factories", "world"]


@pytest.fixture
async def server(world):
    async with world.server() as running:
        yield running


@pytest.fixture
def internal(world, server) -> Caller:
    """A caller with a certificate of the role `internal`."""
    return Caller(server.port, world.contexts["internal"])
