"""One installation for the tests of what operators and producers use."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from broker.embedded.mariadb import MariaDB
from broker.embedded.valkey import Valkey
from support import databases
from support.installation import Installation, installed
from support.waiting import wait_until


@pytest.fixture(scope="package")
def installation(
    valkey: Valkey, mariadb: MariaDB, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """Running, and well; a test that stops a role starts it again."""
    url = databases.create(mariadb)
    data = tmp_path_factory.mktemp("installation")
    with installed(data, redis_url=valkey.url, mysql_url=url, log_name="t-installation") as made:
        asyncio.run(wait_until(made.well, within=90, what="well"))
        yield made
    databases.drop(url)
