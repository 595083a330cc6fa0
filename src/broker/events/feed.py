"""One projector's view of one stream: a lease with a fencing epoch, a fenced read, a doorbell.

The owner names the position to read from; the consumer group only makes the lag visible. Nothing stays
pending, so that a new owner cannot skip what a dead one had read and not yet committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec

from broker.errors import BrokerError, LeaseLost, UnknownEvent
from broker.events import codec, positions
from broker.events.codec import Stored
from broker.events.connection import BLOCK_MS, Redis, call, translated
from broker.events.keys import PROJECTION_GROUP, StreamKeys
from broker.events.positions import Position
from broker.events.scripting import Script

# They free memory in the end (what is projected can be archived and trimmed), so they run past maxmemory.
_ACQUIRE: Final = Script("feed_acquire", allow_oom=True)
_RELEASE: Final = Script("feed_release", allow_oom=True)
_READ: Final = Script("feed_read", allow_oom=True)


class HistoryTrimmed(BrokerError):
    """The stream no longer holds events that the read model still needs; rebuild it from the archive."""

    code = "history_trimmed"


class Malformed(msgspec.Struct, frozen=True):
    """A stream entry that is no event of this log; `fields` are its names and values in turn."""

    position: Position
    error: UnknownEvent
    fields: Sequence[bytes] = ()


class Page(msgspec.Struct, frozen=True):
    """What one read gave. `last` is the stream's last position, `added` the entries it ever got."""

    entries: list[Stored | Malformed]
    last: Position
    added: int


class Ahead(msgspec.Struct, frozen=True):
    """What lies behind a position: `last` and `added` as in `Page`, and the next entry's position, if any."""

    last: Position
    added: int
    next: Position | None


class Feed:
    """The reading end of the stream `keys`, for the process `owner` (unique per process start).

    `group` shows how far it is; `lease` (None: the read models') is the key that one owner at a time holds.
    """

    def __init__(
        self,
        redis: Redis,
        keys: StreamKeys,
        incarnation: str,
        owner: str,
        ttl: float,
        *,
        group: str = PROJECTION_GROUP,
        lease: str | None = None,
    ) -> None:
        self.redis = redis
        self.keys = keys
        self.group = group
        self.lease = lease or keys.lease
        self.stream = keys.stream
        self.incarnation = incarnation
        self.owner = owner
        self.ttl_ms = round(ttl * 1000)
        self.epoch = 0

    async def acquire(self, above: int = 0) -> float:
        """Take the lease; 0 when it is ours (`epoch` is set), else seconds until another look makes sense.

        The epoch is higher than any before, and than `above`. Raises LogRefused, LogUnavailable.
        """
        epoch, left = await _ACQUIRE(
            self.redis, [self.keys.meta, self.lease], [self.incarnation, self.owner, self.ttl_ms, above]
        )
        self.epoch = int(epoch)
        return 0.0 if self.epoch else max(1, int(left)) / 1000

    async def release(self) -> bool:
        """Give the lease back; False when it was another's already."""
        if not self.epoch:
            return False
        epoch, self.epoch = self.epoch, 0
        keys = [self.keys.meta, self.lease]
        return bool(await _RELEASE(self.redis, keys, [self.incarnation, self.owner, epoch]))

    async def let_go(self) -> None:
        """Give the lease back where that takes no more than a second; else it expires by itself."""
        with suppress(BrokerError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self.release()

    async def renew(self, highest: Position) -> None:
        """Extend the lease. Raises LeaseLost, LogRefused (also when the stream ends before `highest`)."""
        await self._script(highest, 0, highest, 0)

    async def read(self, after: Position, entries_read: int, highest: Position, count: int) -> Page:
        """Up to `count` entries after `after`, the stream's entry number `entries_read`; extends the lease.

        `highest` is the furthest checkpoint on this stream. Raises LeaseLost, HistoryTrimmed, LogUnavailable,
        and LogRefused, after which appends are refused too, when the stream ends before `highest`.
        """
        status, trimmed, last, added, entries = await self._script(after, entries_read, highest, count)
        if status == b"TRIMMED":
            raise HistoryTrimmed(
                f"Stream {self.stream} lost its first {int(trimmed)}, {entries_read} were read."
            )
        return Page(
            [entry(positions.at(self.stream, entry_id), fields) for entry_id, fields in entries],
            positions.at(self.stream, last),
            int(added),
        )

    async def wait(self, after: Position) -> bool:
        """The doorbell: True as soon as there are entries after `after`; False when the lease wants renewal.

        Writes nothing. Blocks for `BLOCK_MS` at most.
        """
        block = max(1, min(BLOCK_MS, self.ttl_ms // 3))
        reply = await call(self.redis.xread({self.keys.events: after.entry_id}, count=1, block=block))
        return bool(reply)

    async def _script(self, after: Position, entries_read: int, highest: Position, count: int) -> Any:
        if not self.epoch:
            raise LeaseLost(f"The lease of stream {self.stream} is not held.")
        try:
            return await _READ(
                self.redis,
                [self.keys.meta, self.lease, self.keys.events],
                [
                    self.incarnation,
                    self.owner,
                    self.epoch,
                    self.ttl_ms,
                    self.group,
                    after.entry_id,
                    entries_read,
                    highest.entry_id,
                    count,
                ],
            )
        except LeaseLost:
            self.epoch = 0
            raise


async def ahead(redis: Redis, keys: StreamKeys, after: Position) -> Ahead:
    """How far the stream goes past `after`. Raises LogUnavailable."""
    pipe = redis.pipeline(transaction=False)
    pipe.exists(keys.events)
    pipe.xinfo_stream(keys.events)
    pipe.xrange(keys.events, min=f"({after.entry_id}", count=1)
    with translated():
        exists, info, following = await pipe.execute(raise_on_error=False)
        if not exists:
            return Ahead(positions.start(keys.stream), 0, None)
        for answer in (exists, info, following):
            if isinstance(answer, Exception):
                raise answer
    return Ahead(
        positions.at(keys.stream, info["last-generated-id"]),
        int(info["entries-added"]),
        positions.at(keys.stream, following[0][0]) if following else None,
    )


def entry(position: Position, fields: Sequence[bytes]) -> Stored | Malformed:
    """The stream entry at `position` with these fields, names and values in turn."""
    # Every event has the same fields in the same order (codec.FIELDS).
    if len(fields) == 8 and (fields[0], fields[2], fields[4], fields[6]) == codec.FIELDS:
        try:
            return Stored(position, fields[1].decode("ascii"), fields[3], fields[5], fields[7])
        except UnicodeDecodeError:
            pass
    names = ", ".join(name.decode("utf-8", "replace") for name in fields[::2][:8]) if fields else "none"
    error = UnknownEvent(f"{position}: not an event of this log (fields: {names}).")
    return Malformed(position, error, fields)
