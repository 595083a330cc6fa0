"""Whether the log answers and is the one this process knows; for health."""

from __future__ import annotations

from typing import Any

from broker.errors import LogRefused
from broker.events.connection import Redis, call, text
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity


async def ping(redis: Redis) -> None:
    """Raises LogUnavailable when Redis does not answer."""
    await call(redis.ping())  # type: ignore[misc]


async def check(redis: Redis, keys: LogKeys, identity: LogIdentity) -> None:
    """Compare every stream's incarnation. Raises LogUnavailable or LogRefused."""
    # One command each and no transaction: the streams lie in different slots.
    pipeline = redis.pipeline(transaction=False)
    for stream in keys.streams:
        pipeline.hmget(stream.meta, ["incarnation", "refused"])
    replies: list[Any] = await call(pipeline.execute())
    for stream, (incarnation, refused) in zip(keys.streams, replies, strict=True):
        if refused is not None:
            raise LogRefused(f"{stream.stream}: {text(refused)}.")
        if incarnation is None or text(incarnation) != identity.incarnations[stream.stream]:
            raise LogRefused(f"{stream.stream} is not at the incarnation that this process knows.")
