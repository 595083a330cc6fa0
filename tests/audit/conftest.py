"""A log with digests for each test, on the shared Valkey; and a whole world where a server is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.audits import Audited
from support.fixtures import pki, pytest_asyncio_loop_factories, world

__all__ = ["pki", "pytest_asyncio_loop_factories", "world"]


@pytest.fixture
async def audited(redis, log_name: str, tmp_path: Path) -> Audited:
    return await Audited(redis, log_name, tmp_path).create()
