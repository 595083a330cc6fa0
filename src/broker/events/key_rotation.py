"""Rotations: a key is added, every process loads it, then it is used. What older keys sealed stays readable.

A process follows the registry and proves it (`trust`); one that has no fresh proof serves nobody. So a
client's key that was added before the oldest proof that still counts is known wherever messages are sealed.
Master keys lie in a file, of which the processes say what they have loaded (`key_holders`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from broker import clock
from broker.errors import BrokerError, Conflict, KeyUnavailable
from broker.events import directory, key_holders
from broker.events.connection import Redis, call, text
from broker.events.control import Committed, Registry
from broker.events.key_commands import KeyCommands
from broker.events.key_copies import KeyCopies
from broker.events.keyring import Keyring
from broker.events.keys import ControlKeys
from broker.events.sealing import ClientKeys

POLL_SECONDS: Final = 0.1


class NotLoaded(BrokerError):
    """Not every process has loaded the new master key."""

    code = "key_not_loaded"


class Rotated(msgspec.Struct, frozen=True):
    """A master key that is active now, the ones that retired, and how many clients' keys it wraps anew."""

    key_id: str
    retired: list[str]
    rewrapped: int


class KeyRotation:
    """Rotates the keys of one log. `proof_seconds`: for how long a proof of a follower counts.

    All raise LogUnavailable, LogRefused, KeyUnavailable, Undecryptable, KeyringError.
    """

    def __init__(
        self,
        redis: Redis,
        keys: ControlKeys,
        registry: Registry,
        keyring: Keyring,
        *,
        proof_seconds: float,
        copies: KeyCopies | None = None,
    ) -> None:
        """`copies` of the wrapped keys: no master key that they still need is forgotten."""
        self._redis = redis
        self._keys = keys
        self._keyring = keyring
        self._proof_seconds = proof_seconds
        self._copies = copies
        self._commands = KeyCommands(registry, keyring)

    async def clients(
        self, client_ids: Sequence[str], *, actor: str, correlation_id: str | None = None
    ) -> dict[str, Committed[int]]:
        """Seal these clients' messages with fresh keys; their numbers. Raises NotFound, too.

        When it returns no process seals with an older one any more.
        """
        added = {}
        for name in client_ids:
            done = await self._commands.add(name, actor=actor, correlation_id=correlation_id)
            added[name] = done.value
        await asyncio.sleep(self._proof_seconds)
        active = {
            name: await self._commands.activate(name, number, actor=actor, correlation_id=correlation_id)
            for name, number in added.items()
        }
        await asyncio.sleep(self._proof_seconds)
        return active

    async def master(self, *, patience: float, actor: str) -> Rotated:
        """Wrap by a new master key. Raises NotLoaded after `patience` seconds; asked again, it goes on."""
        waiting = [key for key, state in self._keyring.states().items() if state == "added"]
        if waiting:
            key_id = waiting[-1]
        else:
            key_id = self._keyring.add()
            await self._commands.record("master", key_id, "added", actor=actor)
        await self._loaded_by_all(key_id, patience)
        self._keyring.activate(key_id)
        await self._commands.record("master", key_id, "active", actor=actor)
        rewrapped = 0
        for client in await directory.clients(self._redis, self._keys):
            if client.status == "active":
                rewrapped += (await self._commands.rewrap(client.client_id, actor=actor)).value
        retired = [key for key, state in self._keyring.states().items() if state == "retired"]
        return Rotated(key_id, retired, rewrapped)

    async def forget(self, key_id: str, *, actor: str, patience: float = 60.0) -> None:
        """Remove a retired master key for ever. Raises Conflict while it wraps anything, ArchiveUnavailable.

        Waits for the copies of the keys at most `patience` seconds.
        """
        if self._keyring.states().get(key_id) != "retired":
            raise Conflict(f"{key_id} is not a retired master key.")
        if used := [name for name, masters in (await self.wrapped_by()).items() if key_id in masters]:
            some = ", ".join(sorted(used)[:5])
            raise Conflict(
                f"{key_id} wraps the keys of {len(used)} clients ({some}); rotate the master key first."
            )
        give_up = clock.monotonic() + patience
        while late := await self._copied_by(key_id):
            if clock.monotonic() > give_up:
                raise Conflict(
                    f"The copies of {len(late)} clients' keys ({', '.join(late[:5])}) still need {key_id}: "
                    "the projector makes them anew within seconds; does it run?"
                )
            await asyncio.sleep(POLL_SECONDS)
        self._keyring.remove(key_id)
        await self._commands.record("master", key_id, "removed", actor=actor)

    async def _copied_by(self, key_id: str) -> list[str]:
        """The clients whose copied keys this master key wraps."""
        copied = {} if self._copies is None else await asyncio.to_thread(self._copies.load)
        return sorted(name for name, wrapped in copied.items() if key_id in ClientKeys.masters(name, wrapped))

    async def wrapped_by(self) -> dict[str, set[str]]:
        """The master keys that wrap each client's keys."""
        return {name: ClientKeys.masters(name, wrapped) for name, wrapped in (await self._wrapped()).items()}

    async def numbers(self) -> dict[str, tuple[int, list[int]]]:
        """Each client's active key number, and all that it has."""
        found = {}
        for name, wrapped in sorted((await self._wrapped()).items()):
            keys = ClientKeys.unwrap(name, wrapped, self._keyring)
            found[name] = (keys.active.number, sorted(keys.versions))
        return found

    async def _wrapped(self) -> dict[str, bytes]:
        stored: Any = await call(self._redis.hgetall(self._keys.client_keys))
        return {text(name): wrapped for name, wrapped in stored.items()}

    async def _loaded_by_all(self, key_id: str, patience: float) -> None:
        give_up = clock.monotonic() + patience
        while late := await self._without(key_id):
            if clock.monotonic() > give_up:
                raise NotLoaded(
                    f"{key_id} is added, but {', '.join(late)} cannot load it: does each of them see "
                    f"{self._keyring.path}? Asked again, this goes on with the same key."
                )
            await asyncio.sleep(POLL_SECONDS)
        if key_id not in self._keyring.states():
            raise KeyUnavailable(f"Somebody removed {key_id} meanwhile.")

    async def _without(self, key_id: str) -> list[str]:
        held = await key_holders.holders(self._redis, self._keys)
        return sorted(name for name, keys in held.items() if key_id not in keys)
