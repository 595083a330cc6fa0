"""What is said once a day by all processes together: the first to ask says it."""

from __future__ import annotations

from typing import Any, Final

from broker.events.connection import Redis, call
from broker.events.keys import ControlKeys

# Past the day that it is for, by any clock.
EXPIRY_MS: Final = 3 * 24 * 3_600_000


class Notices:
    """Asks in the control slot of one log."""

    def __init__(self, redis: Redis, keys: ControlKeys) -> None:
        self._redis = redis
        self._keys = keys

    async def first(self, name: str, day: str) -> bool:
        """Whether nobody said `name` on this day (`2026-01-31`) before. Raises LogUnavailable."""
        taken: Any = await call(self._redis.set(self._keys.notice(name, day), 1, nx=True, px=EXPIRY_MS))
        return bool(taken)
