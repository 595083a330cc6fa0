"""What the gateway's health tells: Redis, the log, the followed registry, its own certificate."""

from __future__ import annotations

from collections.abc import Mapping

from broker.events.probe import Probe
from broker.web.health import Check, expiry


class Checks:
    """The checks of one gateway process, which neither MySQL nor the server are among.

    `certificate_ends_ms`: when this gateway's own certificate expires.
    """

    def __init__(self, probe: Probe, *, certificate_ends_ms: int) -> None:
        self._probe = probe
        self._ends = certificate_ends_ms

    async def __call__(self) -> Mapping[str, Check]:
        """The findings."""
        found = await self._probe.look()
        checks = {name: Check(ok=not wrong, detail=wrong) for name, wrong in found.items()}
        return checks | {"certificate": expiry(self._ends)}
