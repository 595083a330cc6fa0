"""The clients' wrapped keys out of what Redis still has and the copies beside it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from broker.events.connection import Redis, call, text
from broker.events.key_copies import KeyCopies
from broker.events.keys import ControlKeys
from broker.events.repair.registry import RegistryFold
from broker.events.sealing import ClientKeys


class FoundKeys(msgspec.Struct, frozen=True):
    """`wrapped` by client; `restored` from copies; `lost`: clients of whose keys some are nowhere."""

    wrapped: dict[str, bytes]
    restored: list[str]
    lost: list[str]
    erased: list[str]
    """Clients whose keys an older Redis had brought back."""


async def find(
    redis: Redis, keys: ControlKeys, copies: KeyCopies, registry: RegistryFold, *, rolled_back: bool
) -> FoundKeys:
    """The keys of every client that was not erased; every number of them that is still anywhere.

    `rolled_back`: what Redis has may be older than the copies. Raises LogUnavailable, ArchiveUnavailable,
    Undecryptable.
    """
    stored: Any = await call(redis.hgetall(keys.client_keys))
    held = {text(name): bytes(value) for name, value in stored.items()}
    copied = await asyncio.to_thread(copies.load)
    found: dict[str, bytes] = {}
    restored, lost, erased = [], [], []
    for name, client in sorted(registry.clients.items()):
        if client.status != "active":
            erased += [name] if name in held else []
            continue
        order = (copied, held) if rolled_back else (held, copied)
        forms = [source[name] for source in order if name in source]
        if not forms:
            lost.append(name)
            continue
        active = registry.active_keys.get(name)
        found[name] = ClientKeys.merged(name, *forms, active=active)
        if active is not None and active not in ClientKeys.numbers(name, found[name]):
            lost.append(name)
        if found[name] != held.get(name):
            restored.append(name)
    return FoundKeys(found, restored, lost, erased)
