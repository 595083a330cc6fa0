"""What Redis holds of each stream: sizes, groups, open messages, and whether it is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from broker.errors import LogRefused
from broker.events.connection import Redis, call, text, translate
from broker.events.keys import LogKeys, PartitionKeys, StreamKeys

SCAN = 1000


class Group(msgspec.Struct, frozen=True):
    """A consumer group; `lag` in events, None where the server cannot tell."""

    name: str
    consumers: int
    pending: int
    lag: int | None
    last_delivered: str


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """One stream; the last four are None for streams that are no partitions."""

    stream: str
    incarnation: str | None
    """None: the stream has no meta, so its Redis was emptied or is another."""
    refused: str | None
    """Why nothing is appended or read, None when it is."""
    length: int
    added: int
    """Events ever appended; `length` is less once some were trimmed."""
    first: str | None
    last: str | None
    memory_bytes: int | None
    """Of the stream itself, by the server's estimate; None where it will not tell."""
    groups: list[Group]
    archived: str | None
    """The last id that is archived durably, None while nothing is."""
    held_by: str | None
    """What keeps history from being cut that is older than wanted, None while nothing does."""
    open: int | None = None
    due: int | None = None
    parked: int | None = None
    moved_aside: int | None = None
    """Open messages whose ciphertext no longer lies in the stream."""


class Consumer(msgspec.Struct, frozen=True):
    """A consumer of a group; `idle_ms` since it last asked for or claimed anything."""

    stream: str
    group: str
    name: str
    pending: int
    idle_ms: int


async def partitions(redis: Redis, log_name: str) -> int:
    """How many partitions the log was created with. Raises LogRefused when Redis holds none."""
    stored = await _meta(redis, log_name, "partitions")
    if not stored.isdigit():
        raise LogRefused(f"Redis holds no log {log_name!r}; `broker up` or `broker prepare` creates it.")
    return int(stored)


async def log_id(redis: Redis, log_name: str) -> str:
    """The id of the log, which its archive goes by. Raises LogRefused when Redis holds none."""
    return await _meta(redis, log_name, "log_id")


async def _meta(redis: Redis, log_name: str, field: str) -> str:
    stored = await call(redis.hget(LogKeys(log_name, 0).control.meta, field))
    if stored is None:
        raise LogRefused(f"Redis holds no log {log_name!r}; `broker up` or `broker prepare` creates it.")
    return text(stored)


async def streams(redis: Redis, keys: LogKeys, *, count_parked: bool = True) -> list[Stream]:
    """Every stream's state now. Raises LogUnavailable. Counting parked messages looks at every open one."""
    return [await _stream(redis, stream, count_parked=count_parked) for stream in keys.streams]


async def consumers(redis: Redis, streams: Sequence[Stream], keys: LogKeys) -> list[Consumer]:
    """The consumers of every group of `streams`, those with most in hand first. Raises LogUnavailable."""
    events = {each.stream: each.events for each in keys.streams}
    groups = [(each.stream, group.name) for each in streams for group in each.groups if group.consumers]
    # Slots of their own, so no transaction; a group may be gone by now.
    pipe = redis.pipeline(transaction=False)
    for stream, group in groups:
        pipe.execute_command("XINFO", "CONSUMERS", events[stream], group)
    replies = await call(pipe.execute(raise_on_error=False)) if groups else []
    found = []
    for (stream, group), reply in zip(groups, replies, strict=True):
        if isinstance(reply, Exception) and str(reply).startswith("NOGROUP"):
            continue
        for one in () if _missing(reply) else map(_map, reply):
            pending, idle = int(one["pending"]), int(one["idle"])
            found.append(Consumer(stream, group, text(one["name"]), pending, idle))
    return sorted(found, key=lambda each: (-each.pending, each.idle_ms))


async def _stream(redis: Redis, keys: StreamKeys, *, count_parked: bool) -> Stream:
    pipe = redis.pipeline(transaction=False)
    pipe.hmget(keys.meta, ["incarnation", "refused"])
    pipe.execute_command("XINFO", "STREAM", keys.events)
    pipe.execute_command("XINFO", "GROUPS", keys.events)
    pipe.memory_usage(keys.events)
    pipe.hmget(keys.archive, ["position", "holder"])
    meta, info, groups, memory, archive = await call(pipe.execute(raise_on_error=False))
    for reply in (meta, archive):
        if isinstance(reply, Exception):
            raise translate(reply)
    found = _Info({}) if _missing(info) else _Info(_map(info))
    extra: dict[str, int] = {}
    if isinstance(keys, PartitionKeys):
        extra = await _partition(redis, keys)
        if count_parked:
            extra["parked"] = await parked(redis, keys)
    return Stream(
        stream=keys.stream,
        incarnation=_optional(meta[0]),
        refused=_optional(meta[1]),
        length=found.number("length"),
        added=found.number("entries-added"),
        first=found.entry("first-entry"),
        last=_optional(found.values.get("last-generated-id")),
        # Some hosted servers forbid the command; the rest is worth showing without it.
        memory_bytes=memory if isinstance(memory, int) else None,
        groups=[] if _missing(groups) else [_group(_map(one)) for one in groups],
        archived=None if archive[0] in {None, b"0-0"} else _optional(archive[0]),
        held_by=_optional(archive[1] or None),
        **extra,
    )


async def _partition(redis: Redis, keys: PartitionKeys) -> dict[str, int]:
    pipe = redis.pipeline(transaction=False)
    pipe.hlen(keys.open)
    pipe.zcard(keys.due)
    pipe.hlen(keys.bodies)
    count, due, aside = await call(pipe.execute())
    return {"open": count, "due": due, "moved_aside": aside}


async def parked(redis: Redis, keys: PartitionKeys) -> int:
    """How many open messages of a partition wait for a person; looks at every open record."""
    cursor, found = 0, 0
    while True:
        reply: Any = await call(redis.hscan(keys.open, cursor, count=SCAN))
        cursor = int(reply[0])
        found += sum(1 for record in reply[1].values() if record.split(b"|", 4)[3] == b"p")
        if not cursor:
            return found


class _Info:
    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def number(self, name: str) -> int:
        return int(self.values.get(name) or 0)

    def entry(self, name: str) -> str | None:
        value = self.values.get(name)
        return text(value[0]) if value else None


def _group(values: dict[str, Any]) -> Group:
    lag = values.get("lag")
    return Group(
        text(values["name"]),
        int(values["consumers"]),
        int(values["pending"]),
        None if lag is None else int(lag),
        text(values["last-delivered-id"]),
    )


def _map(reply: Any) -> dict[str, Any]:
    """A reply as a dict by text, whether the client made one of it or left the flat list."""
    if isinstance(reply, dict):
        return {text(name): value for name, value in reply.items()}
    return {text(name): value for name, value in zip(reply[::2], reply[1::2], strict=True)}


def _missing(reply: Any) -> bool:
    """Whether the key does not exist. Raises the broker's error for any other failure."""
    if isinstance(reply, Exception):
        if "no such key" not in str(reply):
            raise translate(reply)
        return True
    return False


def _optional(value: Any) -> str | None:
    return None if value is None else text(value)
