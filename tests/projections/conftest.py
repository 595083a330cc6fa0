"""A migrated database for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from broker.embedded.mariadb import MariaDB
from broker.projections import schema
from broker.projections.store import Store
from support import databases


@pytest.fixture
def empty_url(mariadb: MariaDB) -> Iterator[str]:
    """A database without any table."""
    url = databases.create(mariadb)
    yield url
    databases.drop(url)


@pytest.fixture(scope="session")
def session_url(mariadb: MariaDB) -> str:
    """A migrated database that tests share one after another, emptied by `url`."""
    url = databases.create(mariadb)
    schema.migrate(url)
    return url


@pytest.fixture
def url(session_url: str) -> str:
    """A migrated database without rows."""
    databases.clear(session_url)
    return session_url


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """A store on the test's database."""
    opened = Store(url)
    yield opened
    await opened.close()
