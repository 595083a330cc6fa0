"""Whole systems: one shared by the tests that only use it, one of their own for those that break it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support import system as systems
from support.fixtures import pki, world
from support.system import System

__all__ = ["pki", "world"]


@pytest.fixture(scope="package")
def shared_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A running system that `up` made from nothing; its retries come after a second instead of thirty."""
    with systems.running(tmp_path_factory.mktemp("shared"), bare=True, retry_interval="1") as system:
        yield system
