"""A rig for each test, on the shared Valkey."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.rig import Rig


@pytest.fixture
async def rig(valkey, redis, tmp_path: Path, log_name: str):
    made = await Rig(valkey.url, redis, tmp_path, log_name).create()
    yield made
    await made.aclose()
