"""Which processes have loaded which master keys: a new one must not be used before all of them can."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from broker import clock, lifecycle
from broker.errors import BrokerError
from broker.events.connection import Redis, call, text
from broker.events.keyring import Keyring
from broker.events.keys import ControlKeys
from broker.events.scripting import Script

COUNTS_MS: Final = 30_000
"""So long what a process said counts; one that was killed holds a rotation up no longer."""
LOOK_SECONDS: Final = 0.25
SAY_SECONDS: Final = 10.0

_say = Script("key_holder", allow_oom=True)


class KeyHolder:
    """One process, of this role. `run` beside whatever keeps `keyring` up to date (`Trust.run`)."""

    def __init__(
        self, redis: Redis, keys: ControlKeys, incarnation: str, keyring: Keyring, *, role: str = ""
    ) -> None:
        # Containers may share a name, and each has a process number 1.
        name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(2)}"
        self.name = f"{role}@{name}" if role else name
        self._redis = redis
        self._keys = keys
        self._incarnation = incarnation
        self._keyring = keyring

    async def run(self, stop: asyncio.Event) -> None:
        """Say it at once, at every change, and again from time to time; that it goes away at `stop`."""
        said, said_at = "", float("-inf")
        while not await lifecycle.sleep_or_stop(LOOK_SECONDS if said else 0.0, stop):
            now = clock.monotonic()
            held = ",".join(self._keyring.states())
            if held == said and now - said_at < SAY_SECONDS:
                continue
            if await self._told(COUNTS_MS, held):
                said, said_at = held, now
            else:
                # It is said again soon; who waits for it meanwhile waits a little longer.
                await lifecycle.sleep_or_stop(LOOK_SECONDS, stop)
        await self._told(0, "")

    async def _told(self, counts_ms: int, held: str) -> bool:
        try:
            async with asyncio.timeout(1.0):
                await _say(
                    self._redis,
                    [self._keys.meta, self._keys.key_holders],
                    [self._incarnation, self.name, counts_ms, held],
                )
        except (BrokerError, TimeoutError):
            return False
        return True


async def holders(redis: Redis, keys: ControlKeys) -> dict[str, set[str]]:
    """Every process that is alive as far as is known, and the master keys it has. Raises LogUnavailable."""
    pipeline = redis.pipeline(transaction=False)
    pipeline.time()
    pipeline.hgetall(keys.key_holders)
    reply: Any = await call(pipeline.execute())
    (seconds, micros), said = reply
    now = seconds * 1000 + micros // 1000
    found = {}
    for name, value in said.items():
        until, _, held = text(value).partition("|")
        if int(until) >= now:
            found[text(name)] = set(held.split(","))
    return found


def roles(names: Iterable[str]) -> Counter[str]:
    """How many of these processes there are of each role, of those that say theirs."""
    return Counter(name.partition("@")[0] for name in names if "@" in name)
