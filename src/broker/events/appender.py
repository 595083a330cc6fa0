"""Group commit: messages that arrive while a write is under way share the next one.

One Lua call per partition and group, so that 500 messages cost one round trip and one fsync. When idle, a
message goes out at once. A call that lost its reply is repeated under the same batch id, which answers
instead of appending; when that fails too the answer is unknown, and the caller is told so.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from broker import clock
from broker.domain import ids
from broker.errors import BrokerError, LogFull, LogRefused, LogUnavailable
from broker.events import codec, envelope
from broker.events.connection import Redis, translated
from broker.events.keys import LogKeys, PartitionKeys
from broker.events.log_identity import LogIdentity
from broker.events.positions import Position, at
from broker.events.scripting import Arg, Script
from broker.events.types import MessageSubmitted

BATCH_TTL_MS = 30_000
"""How long a retry is answered; one that arrives later, as from a frozen process, is refused."""

_append = Script("append")


class Draft(msgspec.Struct, frozen=True):
    """A message ready to be appended: encrypted, with the id it was sealed for."""

    message_id: bytes
    client_id: str
    event: MessageSubmitted
    actor: str
    queued_at: int
    correlation_id: str | None = None


class Appended(msgspec.Struct, frozen=True):
    """The log holds the message, durably."""

    message_id: bytes
    position: Position
    queued_at: int
    replayed: bool = False
    """The idempotency key had been used for this request before; id and position are those of then."""


class KeyReused(msgspec.Struct, frozen=True):
    """The idempotency key had been used for another request; nothing was appended."""


Result = Appended | KeyReused


class Durability(msgspec.Struct, frozen=True):
    """What an append waits for beyond the local fsync."""

    replicas: int = 0
    timeout_ms: int = 1000
    waitaof: bool = False


@dataclass(slots=True)
class _Waiting:
    drafts: Sequence[Draft]
    done: asyncio.Future[list[Result]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Appender:
    """Appends drafts to their partitions. One per process; `run` must be running."""

    def __init__(
        self,
        redis: Redis,
        keys: LogKeys,
        identity: LogIdentity,
        *,
        idempotency_ms: int = 24 * 3_600_000,
        durability: Durability | None = None,
        retry_for: float = 5.0,
        group_limit: int = 500,
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._identity = identity
        self._idempotency_ms = idempotency_ms
        self._durability = durability or Durability()
        self._retry_for = retry_for
        self.group_limit = group_limit
        self._lanes = [_Lane(self, partition) for partition in keys.partitions]
        self._next = secrets.randbelow(len(self._lanes))

    def partition_for(self, idempotency: bytes | None = None) -> int:
        """Where a new message belongs: by its key's hash, else the partition of the group now gathering."""
        if idempotency is not None:
            return idempotency[0] % len(self._lanes)
        if self._lanes[self._next].gathering >= self.group_limit:
            self.rotate(self._next)
        return self._next

    def rotate(self, number: int) -> None:
        """A group of partition `number` was written; what gathered there gathers in the next one now."""
        if self._next == number:
            self._next = (number + 1) % len(self._lanes)

    async def append(self, drafts: Sequence[Draft]) -> list[Result]:
        """Append drafts of one partition, all in one group; returns when they are durable.

        Raises LogUnavailable (the answer is unknown), LogFull or LogRefused.
        """
        lane = self._lanes[ids.partition(drafts[0].message_id)]
        return await lane.submit(drafts)

    async def aclose(self) -> None:
        """Wait for groups under way."""
        for lane in self._lanes:
            await lane.aclose()

    async def write(
        self, partition: PartitionKeys, drafts: Sequence[Draft], seen: Position | None
    ) -> list[Result]:
        """One group, one call, repeated under the same batch id while its answer is unknown."""
        batch_id = secrets.token_hex(12)
        keys, args = self._call(partition, drafts, batch_id, seen)
        give_up = clock.monotonic() + self._retry_for
        wait = 0.02
        while True:
            try:
                return _results(partition, drafts, await self._send(keys, args))
            except (LogFull, LogRefused):
                raise
            except LogUnavailable:
                if clock.monotonic() + wait > give_up:
                    raise
                await asyncio.sleep(wait)
                wait = min(wait * 2, 0.5)

    async def _send(self, keys: list[str], args: list[Arg]) -> bytes:
        wanted = self._durability
        if not wanted.replicas:
            return bytes(await _append(self._redis, keys, args))
        await _append.load(self._redis)
        with translated():
            pipeline = self._redis.pipeline(transaction=False)
            _append.queue(pipeline, keys, args)
            if wanted.waitaof:
                pipeline.execute_command("WAITAOF", 1, wanted.replicas, wanted.timeout_ms)
            else:
                pipeline.execute_command("WAIT", wanted.replicas, wanted.timeout_ms)
            reply, acknowledged = await pipeline.execute()
        reached = acknowledged[1] if isinstance(acknowledged, list) else acknowledged
        if reached < wanted.replicas:
            raise LogUnavailable(f"{reached} of {wanted.replicas} replicas confirmed in time.")
        return bytes(reply)

    def _call(
        self, partition: PartitionKeys, drafts: Sequence[Draft], batch_id: str, seen: Position | None
    ) -> tuple[list[str], list[Arg]]:
        witness = next((draft.message_id for draft in drafts if draft.event.idempotency is None), b"")
        keys = [
            partition.meta,
            partition.events,
            partition.open,
            partition.age,
            partition.batch(batch_id),
            partition.done(ids.created_ms(witness)),
        ]
        args: list[Arg] = [
            self._identity.incarnations[partition.stream],
            BATCH_TTL_MS,
            self._idempotency_ms,
            seen.entry_id if seen else "",
            witness,
        ]
        for draft in drafts:
            event = draft.event
            request_hash = ""
            if event.idempotency is not None and event.request_hash is not None:
                keys.append(partition.idempotency(event.idempotency))
                request_hash = event.request_hash.hex()
            args += (
                draft.message_id,
                envelope.encode(draft.queued_at, draft.actor, draft.correlation_id),
                codec.encode(event),
                draft.client_id,
                envelope.packed_correlation(draft.correlation_id),
                request_hash,
                draft.queued_at,
            )
        return keys, args


class _Lane:
    """One partition's group commit: at most one call under way, the next group gathering behind it."""

    def __init__(self, appender: Appender, partition: PartitionKeys) -> None:
        self._appender = appender
        self._partition = partition
        self._waiting: deque[_Waiting] = deque()
        self._task: asyncio.Task[None] | None = None
        self._seen: Position | None = None
        self.number = partition.number
        self.gathering = 0

    async def submit(self, drafts: Sequence[Draft]) -> list[Result]:
        waiting = _Waiting(drafts)
        self._waiting.append(waiting)
        self.gathering += len(drafts)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._drain())
        return await waiting.done

    async def aclose(self) -> None:
        if self._task is not None:
            await self._task

    async def _drain(self) -> None:
        try:
            while self._waiting:
                await self._write(self._take())
                self._appender.rotate(self.number)
        finally:
            self._task = None

    def _take(self) -> list[_Waiting]:
        group = [self._waiting.popleft()]
        size = len(group[0].drafts)
        while self._waiting and size + len(self._waiting[0].drafts) <= self._appender.group_limit:
            group.append(self._waiting.popleft())
            size += len(group[-1].drafts)
        self.gathering -= size
        return group

    async def _write(self, group: list[_Waiting]) -> None:
        drafts = [draft for waiting in group for draft in waiting.drafts]
        try:
            results = await self._appender.write(self._partition, drafts, self._seen)
        except BrokerError as error:
            self._fail(group, error)
            return
        except BaseException as error:
            self._fail(group, LogUnavailable(type(error).__name__))
            raise
        self._remember(results)
        offset = 0
        for waiting in group:
            share = results[offset : offset + len(waiting.drafts)]
            offset += len(waiting.drafts)
            if not waiting.done.done():
                waiting.done.set_result(share)

    def _remember(self, results: list[Result]) -> None:
        fresh = [r.position for r in results if isinstance(r, Appended) and not r.replayed]
        if fresh:
            self._seen = max(fresh if self._seen is None else [*fresh, self._seen])

    def _fail(self, group: list[_Waiting], error: BrokerError) -> None:
        for waiting in group:
            if not waiting.done.done():
                waiting.done.set_exception(error)


def _results(partition: PartitionKeys, drafts: Sequence[Draft], reply: bytes) -> list[Result]:
    """Read the reply of `append.lua`."""
    head, *lines = reply.decode().split("\n")
    first, _, _count = head.partition("|")
    exceptions: dict[int, Result] = {}
    for line in lines:
        index, kind, *answer = line.split("|")
        exceptions[int(index)] = (
            KeyReused()
            if kind == "C"
            else Appended(
                bytes.fromhex(answer[0]), at(partition.stream, answer[1]), int(answer[2]), replayed=True
            )
        )
    results: list[Result] = []
    position = at(partition.stream, first) if first else None
    for place, draft in enumerate(drafts):
        if place in exceptions:
            results.append(exceptions[place])
            continue
        if position is None:
            raise LogUnavailable("The log's reply names no position.")
        results.append(Appended(draft.message_id, position, draft.queued_at))
        position = Position(position.stream, position.ms, position.seq + 1)
    return results
