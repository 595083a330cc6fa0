"""Real servers, one of each for the whole run; every test has a log name and a database of its own."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest

from broker.embedded.mariadb import MariaDB
from broker.embedded.valkey import Valkey
from broker.events import connection

# A busy machine must not fail a property: no test asserts a duration.
hypothesis.settings.register_profile("broker", deadline=None)
hypothesis.settings.load_profile("broker")


pytest_plugins = ["support.casebook"]

# Directories whose files take minutes. A spread run hands out files in this order: one of them at the end would leave
# the other processes idle.
LONG = ("system", "portal", "ops", "cli", "archive", "audit", "projections", "delivery", "load")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long comes first."""
    here = Path(__file__).parent
    rank = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.relative_to(here).parts[0], len(LONG)))


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """A Valkey that all tests share; tests that stop or fill one use `own_valkey`."""
    server = Valkey(tmp_path_factory.mktemp("valkey"), maxmemory_mb=1024)
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDB]:
    """A MariaDB that all tests share; tests that stop one use `own_mariadb`."""
    server = MariaDB(tmp_path_factory.mktemp("mariadb"))
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


@pytest.fixture
async def own_valkey(tmp_path: Path) -> AsyncIterator[Valkey]:
    """A Valkey for this test alone, on a port, to be killed and filled."""
    server = Valkey(tmp_path / "valkey", port=0)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def own_mariadb(tmp_path: Path) -> AsyncIterator[MariaDB]:
    """A MariaDB for this test alone, to be killed."""
    server = MariaDB(tmp_path / "mariadb", port=0)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def log_name() -> str:
    """A log of this test's own on the shared Valkey."""
    return f"t-{secrets.token_hex(6)}"


@pytest.fixture
async def redis(valkey: Valkey) -> AsyncIterator[connection.Redis]:
    """A client of the shared Valkey."""
    client = connection.connect(valkey.url)
    yield client
    await client.aclose()
