"""A rig for each test, on the shared Valkey."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from rig import Rig


@pytest.fixture
async def rig(valkey, redis, tmp_path: Path, log_name: str):
    made = await Rig(valkey.url, redis, tmp_path, log_name).create()
    yield made
    await made.aclose()
