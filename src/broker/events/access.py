"""The `access` stream: who signed in, failed to, signed out, was shown what. Apart from `control`, so that
nobody can delay a revocation by flooding it.
"""

from __future__ import annotations

import secrets
from typing import Final

from broker import clock
from broker.errors import LogRefused, LogUnavailable
from broker.events import codec, envelope, types
from broker.events.connection import Redis
from broker.events.keys import StreamKeys
from broker.events.positions import ACCESS, Position, at
from broker.events.scripting import Arg, Script

BATCH_TTL_MS: Final = 60_000
"""A retry of a lost reply comes within this time or not at all."""

# What people did is recorded on a Redis at its maxmemory too; their rate is bounded before it comes here.
_append = Script("access_append", allow_oom=True)


class AccessLog:
    """Appends to the `access` stream of one log."""

    def __init__(self, redis: Redis, keys: StreamKeys, incarnation: str) -> None:
        self._redis = redis
        self._keys = keys
        self._incarnation = incarnation

    async def append(
        self, *events: tuple[str, types.Event], actor: str, correlation_id: str | None = None
    ) -> tuple[Position, ...]:
        """Write these pairs of subject (`user:…`) and event together; durable on return.

        Raises LogUnavailable when the outcome is unknown, and LogRefused.
        """
        stored = envelope.encode(clock.now_ms(), actor, correlation_id)
        keys = [self._keys.meta, self._keys.events, self._keys.batch(secrets.token_hex(12))]
        args: list[Arg] = [self._incarnation, BATCH_TTL_MS, len(events)]
        for subject, event in events:
            args += (codec.tag_of(event), subject, stored, codec.encode(event))
        try:
            reply = await _append(self._redis, keys, args)
        except LogRefused:
            raise
        except LogUnavailable:
            # The same batch id again: what was written is answered, not written twice.
            reply = await _append(self._redis, keys, args)
        return tuple(at(ACCESS, entry) for entry in reply)
