"""A log of each test's own on the shared servers, and a database emptied for it."""

from __future__ import annotations

import asyncio

import pytest

from broker.projections import schema
from broker.projections.store import Store
from support import databases
from support.repairs import World


@pytest.fixture(scope="session")
def repair_url(mariadb) -> str:
    """A migrated database that the tests here share one after another."""
    url = databases.create(mariadb)
    schema.migrate(url)
    return url


@pytest.fixture
async def world(valkey, redis, log_name, repair_url, tmp_path):
    await asyncio.to_thread(databases.clear, repair_url)
    store = Store(repair_url)
    made = await World(valkey.url, redis, tmp_path, log_name, store).create()
    yield made
    await made.aclose()
    await made.empty()
    await store.close()
