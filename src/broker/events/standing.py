"""Who is at work on the log, and whether it is refused; what Redis has room for."""

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


class Memory(msgspec.Struct, frozen=True):
    """Bytes in use, and at most; 0 for no bound."""

    used: int
    most: int


async def memory(redis: Redis) -> Memory:
    """What Redis holds now. Raises LogUnavailable."""
    info = await call(redis.info("memory"))
    return Memory(int(info["used_memory"]), int(info.get("maxmemory") or 0))


async def workers(redis: Redis, keys: LogKeys) -> int:
    """How many delivery workers say that they are alive. Raises LogUnavailable."""
    pipeline = redis.pipeline(transaction=False)
    pipeline.time()
    for partition in keys.partitions:
        pipeline.hgetall(partition.workers)
    (seconds, micros), *found = await call(pipeline.execute())
    now = seconds * 1000 + micros // 1000
    alive = {
        consumer for told in found for consumer, until in told.items() if int(until.partition(b"|")[0]) > now
    }
    return len(alive)
