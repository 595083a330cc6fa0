"""A log of a test's own with a client, its keys, and as many workers as the test wants."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec

from broker import clock
from broker.domain import ids
from broker.domain.message import Accepted
from broker.domain.retry import RetryPolicy
from broker.errors import LogUnavailable
from broker.events import codec, connection
from broker.events.appender import Appender, Draft
from broker.events.client_commands import ClientCommands
from broker.events.control import Registry
from broker.events.keyring import Keyring
from broker.events.open_messages import FinishedMessage, look_up
from broker.events.positions import at
from broker.events.reopening import Reopening
from broker.events.sealing import Sealer
from broker.events.trust import Trust
from broker.events.types import MessageSubmitted
from broker.services.delivery.channels.base import Channel
from broker.services.delivery.channels.simulated import Simulated
from broker.services.delivery.worker import Limits, Worker
from support import log as logs
from support.waiting import wait_until

QUICK = Limits(
    concurrency=32,
    claim_ttl=2.0,
    heartbeat_ttl=0.6,
    grace=10.0,
    default_channel="simulated",
    outcomes_kept_ms=logs.OUTCOMES_KEPT_MS,
    retry=RetryPolicy(interval=0.05),
)


class Recorder(Channel):
    """A recipient that notes what reached it and answers as told; it can be made to wait."""

    name = "simulated"

    def __init__(self, answer=None) -> None:
        self.answer = answer or Accepted(200)
        self.seen: list[bytes] = []
        self.deliveries: list = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def deliver(self, deliveries, report) -> None:
        self.seen += [delivery.message_id for delivery in deliveries]
        self.deliveries += deliveries
        await self.gate.wait()
        for delivery in deliveries:
            if not delivery.cancelled:
                report(delivery, self.answer(delivery) if callable(self.answer) else self.answer)


class Rig:
    """`url` may lead through a proxy; `redis` always leads to the server itself."""

    def __init__(self, url: str, redis, directory: Path, log_name: str, partitions: int = 2) -> None:
        self.url, self.redis, self.directory, self.log_name = url, redis, directory, log_name
        self.partitions = partitions

    async def create(self) -> Rig:
        self.keys, self.identity = await logs.create(self.redis, self.log_name, self.partitions)
        self.keyring_path = self.directory / "keys" / "keyring"
        self.keyring = Keyring.create(self.keyring_path)
        self.registry = Registry(self.redis, self.keys.control, self.identity.incarnations["control"])
        self.clients = ClientCommands(self.registry, self.keyring)
        await self.clients.register_client("demo", actor="system")
        self.stop = asyncio.Event()
        self.trust_redis = connection.connect(self.url)
        self.trust = self.follow(self.trust_redis)
        self.following = asyncio.create_task(self.trust.run(self.stop))
        self.sealer = Sealer(self.keyring, self.trust.keys)
        self.appender = Appender(self.redis, self.keys, self.identity)
        self.reopening = Reopening(
            self.redis, self.keys, self.identity, outcomes_kept_ms=logs.OUTCOMES_KEPT_MS
        )
        await wait_until(self.trust.fresh)
        return self

    def follow(self, redis, keyring: Keyring | None = None) -> Trust:
        incarnation = self.identity.incarnations["control"]
        return Trust(redis, self.keys.control, incarnation, keyring or self.keyring)

    async def aclose(self) -> None:
        self.stop.set()
        await self.following
        await self.trust_redis.aclose()

    # -- Messages -----------------------------------------------------------------------------------------

    def draft(self, partition: int, body: str = "hello", client: str = "demo", **changes) -> Draft:
        message_id = ids.new(partition)
        sealed = self.sealer.seal(client, message_id, "+4915200000000", body, {"k": 1})
        event = MessageSubmitted(client, sealed, self.sealer.number_hash(client, "+4915200000000"))
        event = msgspec.structs.replace(event, **changes)
        return Draft(message_id, client, event, f"client:{client}", clock.now_ms(), "c0ffee" + "0" * 26)

    async def submit(self, count: int = 1, partition: int | None = None, **options) -> list[bytes]:
        drafts = [
            self.draft(index % self.partitions if partition is None else partition, **options)
            for index in range(count)
        ]
        for number in range(self.partitions):
            share = [draft for draft in drafts if ids.partition(draft.message_id) == number]
            for start in range(0, len(share), 500):
                await self.appender.append(share[start : start + 500])
        return [draft.message_id for draft in drafts]

    async def state(self, message_id: bytes):
        for _ in range(100):
            with contextlib.suppress(LogUnavailable):
                # Pooled connections from before a restart fail once each.
                return (await look_up(self.redis, self.keys, [message_id]))[0]
        raise AssertionError("the log does not answer")

    async def finished(self, messages: Sequence[bytes]) -> list[FinishedMessage] | None:
        try:
            found = await look_up(self.redis, self.keys, list(messages))
        except LogUnavailable:
            # A connection from before a restart; the next look takes another.
            return None
        return found if all(isinstance(one, FinishedMessage) for one in found) else None

    async def all_finished(self, messages: Sequence[bytes], within: float = 60.0) -> list[FinishedMessage]:
        return await wait_until(lambda: self.finished(messages), within=within, what="every outcome")

    async def events(self, message_id: bytes):
        """The decoded events of a message, oldest first."""
        stream = self.keys.partitions[ids.partition(message_id)]
        entries = await self.redis.xrange(stream.events)
        return [
            codec.recorded(codec.stored(at(stream.stream, entry), fields))
            for entry, fields in entries
            if fields[b"s"] == message_id
        ]

    async def tags(self, message_id: bytes) -> list[str]:
        return [type(one.event).__name__ for one in await self.events(message_id)]

    async def pending(self) -> int:
        total = 0
        for partition in self.keys.partitions:
            total += (await self.redis.xpending(partition.events, "delivery"))["pending"]
        return total

    # -- Workers ------------------------------------------------------------------------------------------

    def worker(self, *, limits: Limits = QUICK, channels=None, redis=None, url=None, **options) -> Worker:
        channels = channels or [Simulated()]
        return Worker(
            redis=redis or self.redis,
            redis_url=url or self.url,
            keys=self.keys,
            identity=self.identity,
            clients=self.trust,
            opener=self.sealer,
            channels={channel.name: channel for channel in channels},
            limits=limits,
            **options,
        )

    @contextlib.asynccontextmanager
    async def working(self, **options) -> AsyncIterator[Worker]:
        """A worker that runs beside the body and stops in order after it."""
        async with self.run(self.worker(**options)) as worker:
            yield worker

    @contextlib.asynccontextmanager
    async def run(self, worker: Worker) -> AsyncIterator[Worker]:
        """Run this worker beside the body; it stops in order after it."""
        stop = asyncio.Event()
        task = asyncio.create_task(worker.run(stop))
        worker.stop_, worker.task_ = stop, task
        try:
            yield worker
        finally:
            stop.set()
            await task
