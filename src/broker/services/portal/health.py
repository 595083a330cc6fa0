"""What the portal's health tells: Redis, the log, the registry; and MySQL, without which it stays up."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from broker.errors import BrokerError
from broker.events.probe import TIMEOUT_SECONDS, Probe
from broker.projections.queries import Queries
from broker.web.health import Check


class Checks:
    """The checks of one portal process."""

    def __init__(self, probe: Probe, queries: Queries) -> None:
        self._probe = probe
        self._queries = queries

    async def __call__(self) -> Mapping[str, Check]:
        """The findings."""
        found = await self._probe.look()
        checks = {name: Check(ok=not wrong, detail=wrong) for name, wrong in found.items()}
        wrong = ""
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await self._queries.ping()
        except BrokerError as error:
            wrong = error.message
        except TimeoutError:
            wrong = "does not answer"
        return checks | {"mysql": Check(ok=not wrong, detail=wrong, essential=False)}
