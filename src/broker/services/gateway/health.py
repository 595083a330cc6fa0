"""What the gateway's health looks at: Redis, the log, the followed registry, its own certificate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from broker import clock
from broker.errors import BrokerError
from broker.events import probe
from broker.events.connection import Redis
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.events.trust import Trust
from broker.web.health import Check

# Health needs no certificate, so it must not let anybody ask Redis as often as they like.
KEPT_SECONDS = 0.25
TIMEOUT_SECONDS = 2.0
DAY_MS = 24 * 3_600_000
WARN_DAYS = 14

Full = Callable[[], str | None]


class Checks:
    """The checks of one gateway process; callable, as `web.health.Health` takes it.

    `certificate_ends_ms`: when this gateway's own certificate expires. `full`: why the log takes nothing
    more, None while it does.
    """

    def __init__(
        self,
        redis: Redis,
        keys: LogKeys,
        identity: LogIdentity,
        trust: Trust,
        *,
        certificate_ends_ms: int,
        full: Full,
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._identity = identity
        self._trust = trust
        self._ends = certificate_ends_ms
        self._full = full
        self._found: dict[str, Check] = {}
        self._found_at = float("-inf")
        self._lock = asyncio.Lock()

    async def __call__(self) -> Mapping[str, Check]:
        """The findings, at most a quarter of a second old."""
        async with self._lock:
            if clock.monotonic() - self._found_at > KEPT_SECONDS:
                self._found = await self._check()
                self._found_at = clock.monotonic()
            return self._found

    async def _check(self) -> dict[str, Check]:
        redis = await _outcome(self._ping)
        log = await _outcome(self._log) if redis.ok else Check(ok=False, detail="waits for Redis")
        fresh = self._trust.fresh()
        return {
            "redis": redis,
            "log": log,
            "trust": Check(ok=fresh, detail="" if fresh else "the registry is not proved fresh"),
            "certificate": own_certificate(self._ends),
        }

    async def _ping(self) -> None:
        await probe.ping(self._redis)

    async def _log(self) -> str | None:
        await probe.check(self._redis, self._keys, self._identity)
        return self._full()


def own_certificate(ends_ms: int) -> Check:
    """The process's own certificate: failed once expired, with a word when it ends soon."""
    days = (ends_ms - clock.now_ms()) / DAY_MS
    if days <= 0:
        return Check(ok=False, detail="expired")
    return Check(ok=True, detail=f"ends in {days:.0f} days" if days < WARN_DAYS else "")


async def _outcome(step: Callable[[], object]) -> Check:
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            detail = await step()  # type: ignore[misc]
    except BrokerError as error:
        return Check(ok=False, detail=error.message)
    except TimeoutError:
        return Check(ok=False, detail="does not answer")
    return Check(ok=not detail, detail=str(detail or ""))
