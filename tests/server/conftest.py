"""A world for each test, on the shared Valkey, and a server in it; people and read models for those that read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from broker.projections import schema
from support import databases, reading
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


@pytest.fixture(scope="session")
def session_url(mariadb) -> str:
    """A migrated database that tests share one after another."""
    url = databases.create(mariadb)
    schema.migrate(url)
    return url


@pytest.fixture
def url(session_url: str) -> Iterator[str]:
    databases.clear(session_url)
    return session_url


@pytest.fixture(name="reading")
async def reading_(world, url) -> AsyncIterator[reading.Reading]:
    """People and two producers, the projector at work."""
    async with reading.opened(world, url) as found:
        yield found
