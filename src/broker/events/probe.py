"""What a process finds when it looks at the log; for health."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from broker import clock
from broker.errors import BrokerError, LogRefused
from broker.events.connection import Redis, call, text
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.events.trust import Trust

# Health needs no certificate, so nobody may make us ask Redis as often as they like.
KEPT_SECONDS = 0.25
TIMEOUT_SECONDS = 2.0

Full = Callable[[], str | None]
"""Why the log takes nothing more, None while it does."""


async def ping(redis: Redis) -> None:
    """Raises LogUnavailable when Redis does not answer."""
    await call(redis.ping())


async def check(redis: Redis, keys: LogKeys, identity: LogIdentity) -> None:
    """Compare every stream's incarnation. Raises LogUnavailable or LogRefused."""
    # One command each and no transaction: the streams lie in different slots.
    pipeline = redis.pipeline(transaction=False)
    for stream in keys.streams:
        pipeline.hmget(stream.meta, ["incarnation", "refused"])
    replies = await call(pipeline.execute())
    for stream, (incarnation, refused) in zip(keys.streams, replies, strict=True):
        if refused is not None:
            raise LogRefused(f"{stream.stream}: {text(refused)}.")
        if incarnation is None or text(incarnation) != identity.incarnations[stream.stream]:
            raise LogRefused(f"{stream.stream} is not at the incarnation that this process knows.")


class Probe:
    """Looks at Redis, the log and the followed registry."""

    def __init__(
        self, redis: Redis, keys: LogKeys, identity: LogIdentity, trust: Trust, full: Full = lambda: None
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._identity = identity
        self._trust = trust
        self._full = full
        self._found: dict[str, str] = {}
        self._found_at = float("-inf")
        self._lock = asyncio.Lock()

    async def look(self) -> Mapping[str, str]:
        """What is wrong with `redis`, `log` and `trust`, '' where nothing is; at most KEPT_SECONDS old."""
        async with self._lock:
            if clock.monotonic() - self._found_at > KEPT_SECONDS:
                self._found = await self._look()
                self._found_at = clock.monotonic()
            return self._found

    async def _look(self) -> dict[str, str]:
        redis = await _wrong(ping(self._redis))
        log = "waits for Redis" if redis else await _wrong(check(self._redis, self._keys, self._identity))
        return {
            "redis": redis,
            "log": log or self._full() or "",
            "trust": "" if self._trust.fresh() else "the registry is not proved fresh",
        }


async def _wrong(step: Awaitable[None]) -> str:
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await step
    except BrokerError as error:
        return error.message
    except TimeoutError:
        return "does not answer"
    return ""
