"""A log of one's own, and drafts to put into it."""

from __future__ import annotations

from broker import clock
from broker.domain import ids
from broker.events import log_identity
from broker.events.appender import Draft
from broker.events.connection import Redis
from broker.events.keys import LogKeys, StreamKeys
from broker.events.types import MessageSubmitted
from broker.settings import Settings

OUTCOMES_KEPT_MS = Settings().outcomes_kept_ms


async def create(redis: Redis, log_name: str, partitions: int = 2):
    """Keys and identity of a fresh log; bypasses the identity file, which has tests of its own."""
    keys = LogKeys(log_name, partitions)
    incarnations = {stream.stream: f"inc-{stream.stream}" for stream in keys.streams}
    for stream in keys.streams:
        await redis.hset(
            stream.meta,
            mapping={
                "incarnation": incarnations[stream.stream],
                "log_id": log_name,
                "partitions": str(partitions),
            },
        )
    return keys, log_identity.LogIdentity(log_id=log_name, partitions=partitions, incarnations=incarnations)


def draft(partition: int = 0, client: str = "demo", sealed: bytes = b"sealed", key: bytes | None = None,
          request: bytes | None = None) -> Draft:  # fmt: skip
    """A draft with made-up ciphertext."""
    return Draft(
        message_id=ids.new(partition),
        client_id=client,
        event=MessageSubmitted(client, sealed, b"h" * 32, idempotency=key, request_hash=request),
        actor=f"client:{client}",
        queued_at=clock.now_ms(),
        correlation_id="c0ffee" + "0" * 26,
    )


async def history(redis: Redis, stream: StreamKeys) -> list[tuple[str, dict[bytes, bytes]]]:
    """Every entry of a stream, oldest first, as (tag, fields)."""
    return [(fields[b"t"].decode(), fields) for _, fields in await redis.xrange(stream.events)]


async def tags(redis: Redis, stream: StreamKeys, message_id: bytes | None = None) -> list[str]:
    """The event types of a stream, or of one message in it, oldest first."""
    return [tag for tag, fields in await history(redis, stream) if message_id in (None, fields[b"s"])]
