"""Erasing a client: its keys destroyed, also in copies and in the append-only file; nothing left waiting.

Messages that wait for an attempt are ended by a worker when their time comes; parked ones, which no worker
would touch, are ended here. Every step can be repeated: one that was interrupted is completed by the next.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec

from broker import clock
from broker.domain.clients import ClientEntry
from broker.errors import Conflict, LogUnavailable, NotFound
from broker.events.archive.storage import ArchiveUnavailable
from broker.events.client_commands import ClientCommands
from broker.events.connection import Redis, call
from broker.events.control import Registry, client_field
from broker.events.key_copies import KeyCopies
from broker.events.keys import LogKeys, PartitionKeys
from broker.events.open_messages import OpenMessage, parse_open
from broker.events.positions import Position
from broker.events.reopening import Asked, Reopening

SCAN: Final = 1000
POLL_SECONDS: Final = 0.1
REASON: Final = "the client was erased"


class Erased(msgspec.Struct, frozen=True):
    """What was done; `forgotten`: whether Redis rewrote its file, so that not even that holds the keys.

    `copied`: copies of the keys could not be reached; whoever archives the log removes them.
    """

    client_id: str
    positions: tuple[Position, ...]
    discarded: int
    """Parked messages that ended."""
    waiting: int
    """Messages that a worker ends when their next attempt is due."""
    forgotten: bool
    copied: bool


class Erasure:
    """Erases clients of one log; `copies` as far as this machine sees any."""

    def __init__(
        self,
        commands: ClientCommands,
        registry: Registry,
        redis: Redis,
        keys: LogKeys,
        reopening: Reopening,
        *,
        copies: KeyCopies | None = None,
    ) -> None:
        self._commands = commands
        self._copies = copies
        self._registry = registry
        self._redis = redis
        self._keys = keys
        self._reopening = reopening

    async def erase(
        self,
        client_id: str,
        reason: str,
        *,
        actor: str,
        correlation_id: str | None = None,
        within: float = 10.0,
    ) -> Erased:
        """Destroy the keys, revoke the certificates, end what is parked, have Redis forget; for good.

        Waits for the copies and for Redis' file at most `within` seconds each. Raises NotFound,
        LogUnavailable, LogRefused.
        """
        positions: tuple[Position, ...] = ()
        try:
            done = await self._commands.erase_client(
                client_id, reason, actor=actor, correlation_id=correlation_id
            )
            positions = done.positions
        except NotFound:
            known = await self._registry.read(client_field(client_id), ClientEntry)
            if known is None:
                raise
        copied = not await self._uncopied(client_id, within)
        asked = Asked(actor, clock.now_ms(), correlation_id)
        discarded = waiting = 0
        for partition in self._keys.partitions:
            for message in await self._open(partition, client_id):
                if message.phase == "parked" and await self._discard(message, asked):
                    discarded += 1
                else:
                    waiting += 1
        forgotten = await forget(self._redis, within)
        return Erased(client_id, positions, discarded, waiting, forgotten, copied)

    async def _uncopied(self, client_id: str, within: float) -> bool:
        """Remove the copies at once: an archiver may be down, and Redis lost before it has read the event."""
        if self._copies is None:
            return True
        try:
            async with asyncio.timeout(within):
                await asyncio.to_thread(_remove, self._copies, client_id)
        except (ArchiveUnavailable, TimeoutError):
            return False
        return True

    async def _discard(self, message: OpenMessage, asked: Asked) -> bool:
        try:
            await self._reopening.discard(message.message_id, message.cycle, REASON, asked)
        except Conflict:
            # Given back or ended by somebody else meanwhile.
            return False
        return True

    async def _open(self, partition: PartitionKeys, client_id: str) -> list[OpenMessage]:
        """The client's messages without an outcome."""
        found: dict[bytes, OpenMessage] = {}
        cursor = 0
        while True:
            reply: Any = await call(self._redis.hscan(partition.open, cursor, count=SCAN))
            cursor = int(reply[0])
            for message_id, record in reply[1].items():
                message = parse_open(partition.stream, message_id, record)
                if message.client_id == client_id:
                    found[message_id] = message
            if not cursor:
                return list(found.values())


def _remove(copies: KeyCopies, client_id: str) -> None:
    held = copies.held()
    if held.copies or held.erased:
        # Where there are none at all they lie elsewhere, and a mark here would tell nobody.
        copies.erase(client_id, held)


async def forget(redis: Redis, within: float) -> bool:
    """Have Redis write its append-only file anew, which holds every key that was ever written until then.

    False where that cannot be had, or not within so many seconds. Snapshots and backups are their keepers'.
    """
    try:
        async with asyncio.timeout(within):
            # One that is under way may have begun before the keys went.
            await _rewritten(redis)
            await call(redis.bgrewriteaof())
            state = await _rewritten(redis)
    except (LogUnavailable, TimeoutError):
        return False
    return state.get("aof_last_bgrewrite_status") == "ok"


async def _rewritten(redis: Redis) -> dict[str, Any]:
    """Wait until no rewrite is under way; Redis' state then."""
    while True:
        state: dict[str, Any] = await call(redis.info("persistence"))
        if not (state.get("aof_rewrite_in_progress") or state.get("aof_rewrite_scheduled")):
            return state
        await asyncio.sleep(POLL_SECONDS)
