"""Reading the log as it lies in Redis, without a group, a lease or a trace: for people and exports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from broker import lifecycle
from broker.errors import LogUnavailable, UnknownEvent
from broker.events import codec
from broker.events.codec import Stored
from broker.events.connection import BLOCK_MS, Redis, call
from broker.events.keys import LogKeys, StreamKeys
from broker.events.positions import Position, at, start

PAGE = 1000

Match = Callable[[Stored], bool]


async def before(redis: Redis, stream: StreamKeys, position: Position | None, count: int) -> list[Stored]:
    """Up to `count` events before `position` (None: the end), the newest first.

    Raises LogUnavailable, and UnknownEvent for an entry that is no event.
    """
    top = "+" if position is None else f"({position.entry_id}"
    return _entries(stream, await call(redis.xrevrange(stream.events, max=top, min="-", count=count)))


async def after(redis: Redis, stream: StreamKeys, position: Position, count: int) -> list[Stored]:
    """Up to `count` events after `position`, the oldest first. Raises as `before`."""
    low = f"({position.entry_id}"
    return _entries(stream, await call(redis.xrange(stream.events, min=low, max="+", count=count)))


async def event(redis: Redis, stream: StreamKeys, position: Position) -> Stored | None:
    """The event at `position`, None when the stream does not hold it (any more)."""
    found = await call(redis.xrange(stream.events, min=position.entry_id, max=position.entry_id))
    return next(iter(_entries(stream, found)), None)


async def last_position(redis: Redis, stream: StreamKeys) -> Position:
    """Where the stream ends; its start when it is empty."""
    newest = await before(redis, stream, None, 1)
    return newest[0].position if newest else start(stream.stream)


async def latest(
    redis: Redis, stream: StreamKeys, count: int, match: Match, *, not_before_ms: int = 0
) -> list[Stored]:
    """The last `count` events that match, oldest first; looks back no further than `not_before_ms`."""
    found: list[Stored] = []
    position: Position | None = None
    while len(found) < count:
        page = await before(redis, stream, position, PAGE)
        found += [entry for entry in page if entry.position.ms >= not_before_ms and match(entry)]
        if len(page) < PAGE or page[-1].position.ms < not_before_ms:
            break
        position = page[-1].position
    return found[:count][::-1]


async def everything(
    redis: Redis, stream: StreamKeys, position: Position, match: Match, limit: int | None = None
) -> list[Stored]:
    """All events after `position` that match, oldest first; of at most `limit` events looked at."""
    found: list[Stored] = []
    seen = 0
    while limit is None or seen < limit:
        page = await after(redis, stream, position, PAGE)
        found += [entry for entry in page if match(entry)]
        seen += len(page)
        if len(page) < PAGE:
            break
        position = page[-1].position
    return found


async def follow(
    redis: Redis, positions: Sequence[tuple[StreamKeys, Position]], waiting: Callable[[LogUnavailable], None]
) -> AsyncIterator[Stored]:
    """Every event after the given positions, as it is appended, without end.

    While Redis is away `waiting` is called once a stretch, and reading goes on where it stood.
    """
    queue: asyncio.Queue[Stored | BaseException] = asyncio.Queue(PAGE)
    away: set[str] = set()

    def lost(stream: str, error: LogUnavailable) -> None:
        # All streams lie in one Redis, or nearly: one word is enough for all of them.
        if not away:
            waiting(error)
        away.add(stream)

    async def read(stream: StreamKeys, position: Position) -> None:
        try:
            await _read_on(redis, stream, position, queue, lost=lost, found=away.discard)
        except Exception as error:  # noqa: BLE001 - raised to the reader of the queue
            await queue.put(error)

    # A read of its own for each stream: on a cluster they lie in different slots.
    tasks = [asyncio.create_task(read(stream, position)) for stream, position in positions]
    try:
        while True:
            found = await queue.get()
            if isinstance(found, BaseException):
                raise found
            yield found
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


async def _read_on(
    redis: Redis,
    stream: StreamKeys,
    position: Position,
    queue: asyncio.Queue[Stored | BaseException],
    *,
    lost: Callable[[str, LogUnavailable], None],
    found: Callable[[str], None],
) -> None:
    pauses = lifecycle.backoff()
    while True:
        try:
            reply = await call(redis.xread({stream.events: position.entry_id}, count=PAGE, block=BLOCK_MS))
        except LogUnavailable as error:
            lost(stream.stream, error)
            await asyncio.sleep(next(pauses))
            continue
        found(stream.stream)
        pauses = lifecycle.backoff()
        for _, entries in _pairs(reply):
            for entry in _entries(stream, entries):
                await queue.put(entry)
                position = entry.position


def streams_named(keys: LogKeys, names: Sequence[str]) -> list[StreamKeys]:
    """The streams of these names, all of them for none; a name that there is not is left out."""
    return [stream for stream in keys.streams if not names or stream.stream in names]


def _pairs(reply: Any) -> Any:
    return reply.items() if isinstance(reply, Mapping) else reply or ()


def _entries(stream: StreamKeys, found: Any) -> list[Stored]:
    return [codec.stored(at(stream.stream, entry_id), _fields(fields)) for entry_id, fields in found or ()]


def _fields(fields: Any) -> Mapping[bytes, bytes]:
    if fields is None:
        raise UnknownEvent("The entry was deleted.")
    return fields  # type: ignore[no-any-return]
