"""An installation with a history of some hundred events, most of them archived, shared by the tests of backups."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker import preparation
from broker.embedded.valkey import Valkey
from broker.events.backup import sealing
from broker.events.backup.creating import Source
from broker.preparation import Tools
from broker.settings import Settings
from support import backups


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passphrases that take no second each; what a file costs stands in the file."""
    monkeypatch.setattr(sealing, "TIME_COST", 1)
    monkeypatch.setattr(sealing, "MEMORY_KIB", 64)


@pytest.fixture(scope="module")
def installation(valkey: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Prepared, with 60 messages in two partitions, 40 of them archived."""
    settings = backups.settings_of(
        valkey.url, tmp_path_factory.mktemp("installation"), f"t-{secrets.token_hex(6)}"
    )

    async def make() -> None:
        await preparation.prepare(settings)
        async with backups.opened(settings) as (_, source):
            await backups.append(source, 20)
            await backups.archive_all(source)
            await backups.append(source, 10)

    asyncio.run(make())
    return settings


@pytest.fixture
async def log(installation: Settings) -> AsyncIterator[tuple[Tools, Source]]:
    """The log of the installation."""
    async with backups.opened(installation) as found:
        yield found


@pytest.fixture
def source(log: tuple[Tools, Source]) -> Source:
    """What a backup is made of."""
    return log[1]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where backups go."""
    return tmp_path / "target"
