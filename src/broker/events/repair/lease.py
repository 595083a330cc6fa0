"""One repair at a time, and nobody else at work meanwhile."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

from broker import lifecycle
from broker.errors import Conflict, LeaseLost, LogUnavailable
from broker.events.connection import Redis, call, text
from broker.events.keys import ControlKeys, LogKeys, PartitionKeys, StreamKeys
from broker.events.scripting import Script

TTL_MS: Final = 6_000
"""A repair that was killed holds others up so long. Safety does not rest on it: the fences do that."""
REASON: Final = "it is being repaired; should that have been interrupted, run `broker streams repair` again"

_lease: Final = Script("repair_lease", allow_oom=True)
_fence: Final = Script("repair_fence", allow_oom=True)


def made(keys: StreamKeys, token: str, place: str) -> str:
    """The key under which a repair makes what is to be at `place`."""
    return f"{keys.base}:repair:{token}:{place.removeprefix(keys.base + ':')}"


def places(keys: StreamKeys) -> list[str]:
    """What a repair makes anew of a stream."""
    if isinstance(keys, PartitionKeys):
        return [keys.events, keys.open, keys.age, keys.due, keys.bodies]
    return [keys.events, keys.registry, keys.client_keys] if isinstance(keys, ControlKeys) else [keys.events]


class RepairLease:
    """Held for one repair; `token` fences what it does on every stream."""

    def __init__(self, redis: Redis, keys: LogKeys) -> None:
        self.token = secrets.token_hex(8)
        self._redis = redis
        self._keys = keys
        self._key = f"{keys.control.base}:repair-lease"
        self._before: dict[str, str] = {}

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """The lease for as long as the block takes. Raises Conflict while another repair is under way."""
        if not await _lease(self._redis, [self._key], [self.token, TTL_MS]):
            raise Conflict(
                "Another repair of this log is under way, or was killed a moment ago: try again in "
                f"{TTL_MS // 1000} s."
            )
        try:
            async with lifecycle.running(self._keep(), on_failure=lambda: None):
                yield
        finally:
            # Where Redis is away it runs out by itself.
            with suppress(LogUnavailable):
                await _lease(self._redis, [self._key], [self.token, 0])

    async def _keep(self) -> None:
        # Whoever takes it after an outage also takes over the fences, which then refuse this one's steps.
        while True:
            await asyncio.sleep(TTL_MS / 3000)
            try:
                await _lease(self._redis, [self._key], [self.token, TTL_MS])
            except LogUnavailable:
                continue

    async def fence(self, streams: Sequence[StreamKeys]) -> None:
        """From here on nobody but this repair changes these streams; removes what earlier repairs left."""
        for keys in streams:
            refused = await call(self._redis.hget(keys.meta, "refused"))
            former = text(await _fence(self._redis, [keys.meta], [self.token, REASON]))
            self._before[keys.stream] = "" if refused is None else text(refused)
            if former and former != self.token:
                await call(self._redis.unlink(*(made(keys, former, place) for place in places(keys))))

    async def check(self, streams: Sequence[StreamKeys]) -> None:
        """Before a step that Redis does not fence. Raises LeaseLost where another repair has begun since."""
        for keys in streams:
            token = await call(self._redis.hget(keys.meta, "repair"))
            if token is None or text(token) != self.token:
                raise LeaseLost("Another repair of this log has begun since; this one changes nothing more.")

    async def lift(self, streams: Sequence[StreamKeys]) -> None:
        """Let the streams be as they were before `fence`, nothing of them having been changed."""
        for keys in streams:
            await _fence(self._redis, [keys.meta], [self.token, "", self._before[keys.stream]])
