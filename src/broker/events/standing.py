"""Who projects each stream, and whether the log itself refuses it."""

from __future__ import annotations

import msgspec

from broker.events.connection import Redis, call, text
from broker.events.keys import LogKeys


class Standing(msgspec.Struct, frozen=True):
    """One stream; `refused` is why nothing is read from it, `owner` the projector that has its lease."""

    incarnation: str | None
    refused: str | None
    owner: str | None


async def look(redis: Redis, keys: LogKeys) -> dict[str, Standing]:
    """Every stream's, by its name. Raises LogUnavailable."""
    # Slots of their own, so no transaction; the server's clock tells which leases are over.
    pipeline = redis.pipeline(transaction=False)
    pipeline.time()
    for stream in keys.streams:
        pipeline.hmget(stream.meta, ["incarnation", "refused"])
        pipeline.hmget(stream.lease, ["owner", "expires"])
    (seconds, micros), *replies = await call(pipeline.execute())
    now = seconds * 1000 + micros // 1000
    found = {}
    for stream, (incarnation, refused), (owner, expires) in zip(
        keys.streams, replies[::2], replies[1::2], strict=True
    ):
        held = owner and expires is not None and int(expires) > now
        found[stream.stream] = Standing(
            None if incarnation is None else text(incarnation),
            None if refused is None else text(refused),
            text(owner) if held else None,
        )
    return found
