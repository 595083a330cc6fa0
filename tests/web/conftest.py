"""Every test of the web layer runs on asyncio's loop and on uvloop."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from support.pki import Pki


def pytest_asyncio_loop_factories(config, item):
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))
