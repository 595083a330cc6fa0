"""What each process knows: which master keys it has loaded, which control events it has applied.

A new master key must not be used before all of them can; who changed the registry may want to wait until all
of them go by the change.
"""

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
from broker.events.positions import CONTROL, Position, at
from broker.events.scripting import Script
from broker.events.trust import Trust

COUNTS_MS: Final = 30_000
"""So long what a process said counts; one that was killed holds a rotation up no longer."""
LOOK_SECONDS: Final = 0.25
SAY_SECONDS: Final = 10.0

_say = Script("key_holder", allow_oom=True)


class KeyHolder:
    """One process, of this role. `run` beside whatever keeps `keyring` up to date (`trust.run`)."""

    def __init__(
        self,
        redis: Redis,
        keys: ControlKeys,
        incarnation: str,
        keyring: Keyring,
        *,
        role: str = "",
        trust: Trust | None = None,
    ) -> None:
        # Containers may share a name, and each has a process number 1.
        name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(2)}"
        self.name = f"{role}@{name}" if role else name
        self._redis = redis
        self._keys = keys
        self._incarnation = incarnation
        self._keyring = keyring
        self._trust = trust
        self._moved = asyncio.Event() if trust is None else trust.moved

    async def announce(self) -> None:
        """Say that this process is there. Before it loads the registry, so that whoever changes it meanwhile
        finds a process that must be waited for, or one that is yet to load the change.
        """
        await self._told(COUNTS_MS, *self._known())

    async def run(self, stop: asyncio.Event) -> None:
        """Say it at once, at every change, and again from time to time; that it goes away at `stop`."""
        said, said_at = ("", ""), float("-inf")
        while not await self._rung(LOOK_SECONDS if said[0] else 0.0, stop):
            self._moved.clear()
            now = clock.monotonic()
            known = self._known()
            if known == said and now - said_at < SAY_SECONDS:
                continue
            if await self._told(COUNTS_MS, *known):
                said, said_at = known, now
            else:
                # It is said again soon; who waits for it meanwhile waits a little longer.
                await lifecycle.sleep_or_stop(LOOK_SECONDS, stop)
        await self._told(0, "")

    def _known(self) -> tuple[str, str]:
        return ",".join(self._keyring.states()), (self._trust and self._trust.revision) or ""

    async def _rung(self, seconds: float, stop: asyncio.Event) -> bool:
        """Wait until there may be something to say, no longer than that; whether `stop` is set."""
        waiting = [asyncio.ensure_future(event.wait()) for event in (stop, self._moved)]
        try:
            await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()
        return stop.is_set()

    async def _told(self, counts_ms: int, held: str, applied: str = "") -> bool:
        try:
            async with asyncio.timeout(1.0):
                await _say(
                    self._redis,
                    [self._keys.meta, self._keys.key_holders, self._keys.followers],
                    [self._incarnation, self.name, counts_ms, held, applied],
                )
        except (BrokerError, TimeoutError):
            return False
        return True


async def holders(redis: Redis, keys: ControlKeys) -> dict[str, set[str]]:
    """Every process that is alive as far as is known, and the master keys it has. Raises LogUnavailable."""
    found, _ = await _said(redis, keys)
    return found


async def applied(redis: Redis, keys: ControlKeys) -> dict[str, Position | None]:
    """Up to which control event every process that is alive, as far as is known, goes by what was recorded.

    The start of the stream for one that has yet to load the registry, None for one of an older version, which
    does not say. Raises LogUnavailable.
    """
    found, followers = await _said(redis, keys)
    return {name: at(CONTROL, followers[name] or "0-0") if name in followers else None for name in found}


async def _said(redis: Redis, keys: ControlKeys) -> tuple[dict[str, set[str]], dict[str, str]]:
    """The master keys of every process that counts, and the event that each has named, if any."""
    pipeline = redis.pipeline(transaction=False)
    pipeline.time()
    pipeline.hgetall(keys.key_holders)
    pipeline.hgetall(keys.followers)
    reply: Any = await call(pipeline.execute())
    (seconds, micros), said, followers = reply
    now = seconds * 1000 + micros // 1000
    found = {}
    for name, value in said.items():
        until, _, held = text(value).partition("|")
        if int(until) >= now:
            found[text(name)] = set(held.split(","))
    return found, {text(name): text(event) for name, event in followers.items()}


def roles(names: Iterable[str]) -> Counter[str]:
    """How many of these processes there are of each role, of those that say theirs."""
    return Counter(name.partition("@")[0] for name in names if "@" in name)
