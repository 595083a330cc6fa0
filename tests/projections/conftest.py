"""A migrated database and a log for each test."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pymysql
import pytest

from broker.embedded.mariadb import MariaDB
from broker.projections import address, schema
from broker.projections.store import Store


def connected(url: str) -> Any:
    """A plain connection to the database at `url`."""
    place = address.parse(url)
    return pymysql.connect(**place.options(), database=place.database, autocommit=True)


def database(server: MariaDB) -> str:
    """The URL of a fresh, empty database on `server`."""
    name = f"message_system_{secrets.token_hex(6)}"
    with connected(server.url) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    return server.url.replace("/message_system", f"/{name}", 1)


def drop(url: str) -> None:
    with connected(url) as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE {address.parse(url).database}")


@pytest.fixture
def empty_url(mariadb: MariaDB) -> Iterator[str]:
    """A database without any table."""
    url = database(mariadb)
    yield url
    drop(url)


@pytest.fixture(scope="session")
def session_url(mariadb: MariaDB) -> str:
    """A migrated database that tests share one after another, emptied by `url`."""
    url = database(mariadb)
    schema.migrate(url)
    return url


@pytest.fixture
def url(session_url: str) -> str:
    """A migrated database without rows."""
    with connected(session_url) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT table_name FROM information_schema.tables WHERE table_schema=DATABASE()")
        for (table,) in cursor.fetchall():
            if table != "alembic_version":
                cursor.execute(f"DELETE FROM {table}")
    return session_url


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """A store on the test's database."""
    opened = Store(url)
    yield opened
    await opened.close()
    await asyncio.sleep(0)
