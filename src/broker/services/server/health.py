"""What the server's health tells: Redis, the log, the registry, the database, its own certificate."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from broker.errors import BrokerError
from broker.events.probe import TIMEOUT_SECONDS, Probe
from broker.web.health import Check, expiry


class Database(Protocol):
    """The read models' database; `ping` raises StoreUnavailable."""

    async def ping(self) -> None: ...


class Checks:
    """The checks of one server process. Without MySQL it is `degraded`: the internal API does not need it."""

    def __init__(self, probe: Probe, database: Database | None, *, certificate_ends_ms: int) -> None:
        self._probe = probe
        self._database = database
        self._ends = certificate_ends_ms

    async def __call__(self) -> Mapping[str, Check]:
        """The findings."""
        found = await self._probe.look()
        checks = {name: Check(ok=not wrong, detail=wrong) for name, wrong in found.items()}
        if self._database is not None:
            wrong = await _wrong(self._database)
            checks["mysql"] = Check(ok=not wrong, detail=wrong, essential=False)
        return checks | {"certificate": expiry(self._ends)}


async def _wrong(database: Database) -> str:
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await database.ping()
    except BrokerError as error:
        return error.message
    except TimeoutError:
        return "does not answer"
    return ""
