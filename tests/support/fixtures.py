"""What tests of a running gateway or server share; their conftests import it."""

from __future__ import annotations

from pathlib import Path

import pytest
import uvloop

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
