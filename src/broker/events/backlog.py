"""How much work is open, as Redis counts it."""

from __future__ import annotations

from typing import Final

import msgspec

from broker.events.connection import Redis
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.events.scripting import Script

LATE_MS: Final = 5_000
"""The pump turns due retries into events within a second; what waits longer than this is overdue."""

_backlog = Script("backlog", allow_oom=True)


class Backlog(msgspec.Struct, frozen=True):
    """Messages whose cycle has no outcome, and retries among them whose time has passed."""

    open: int
    overdue: int


async def measure(redis: Redis, keys: LogKeys, identity: LogIdentity, *, late_ms: int = LATE_MS) -> Backlog:
    """The backlog of all partitions, by Redis' clock. Raises LogUnavailable, LogRefused."""
    waiting = overdue = 0
    for partition in keys.partitions:
        found = await _backlog(
            redis,
            [partition.meta, partition.open, partition.due],
            [identity.incarnations[partition.stream], late_ms],
        )
        waiting += int(found[0])
        overdue += int(found[1])
    return Backlog(waiting, overdue)
