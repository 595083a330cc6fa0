"""Everything that the registry holds of a kind, read for lists; who decides reads through a transaction."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from broker.domain.certificates import CertificateEntry
from broker.domain.clients import ClientEntry
from broker.domain.users import UserEntry
from broker.events.connection import Redis, call
from broker.events.control import split
from broker.events.keys import ControlKeys

T = TypeVar("T")

SCAN = 1000


async def clients(redis: Redis, keys: ControlKeys) -> list[ClientEntry]:
    """Every client, by name. Raises LogUnavailable."""
    return sorted(await _entries(redis, keys, "client:", ClientEntry), key=lambda entry: entry.client_id)


async def certificates(redis: Redis, keys: ControlKeys) -> list[CertificateEntry]:
    """Every certificate, by name and then age. Raises LogUnavailable."""
    found = await _entries(redis, keys, "cert:", CertificateEntry)
    return sorted(found, key=lambda entry: (entry.client_id, entry.issued_at_ms, entry.fingerprint))


async def users(redis: Redis, keys: ControlKeys) -> list[UserEntry]:
    """Every user, by e-mail address. Raises LogUnavailable."""
    return sorted(await _entries(redis, keys, "user:", UserEntry), key=lambda entry: entry.email)


async def _entries(redis: Redis, keys: ControlKeys, prefix: str, kind: type[T]) -> list[T]:
    # HSCAN may give a field twice while the hash grows.
    found: dict[bytes, T] = {}
    cursor = 0
    while True:
        reply: Any = await call(redis.hscan(keys.registry, cursor, match=f"{prefix}*", count=SCAN))
        cursor = int(reply[0])
        for field, stored in reply[1].items():
            payload = split(stored)[1]
            if payload is not None:
                found[field] = msgspec.msgpack.decode(payload, type=kind)
        if not cursor:
            return list(found.values())
