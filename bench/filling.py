"""Tables as a long history leaves them, for benchmarks that read them: 100,000 messages a day.

The events are made up and folded by the projections themselves, without a log: what is written, and in which
order, is what a projector writes. Bodies are sealed under the clients' own keys.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from functools import partial

from broker import clock
from broker.domain import ids
from broker.events import codec, envelope, types
from broker.events.codec import Stored
from broker.events.positions import Position
from broker.events.sealing import ClientKeys, Sealer
from broker.preparation import Tools
from broker.projections import base, catalog, sql
from broker.projections.store import Store

CLIENTS = tuple(f"client-{number:02}" for number in range(20))
NUMBERS = 1000
"""Sender numbers of each client."""
DAY = 100_000
DAY_MS = 86_400_000
FAILED = 0.01
WAITING = 200
"""The newest messages have no outcome yet."""
SLICE = 8_000
"""Messages a transaction."""
TOOK_MS = 40
WORKER = "worker:w1"
BODY = "Your parcel is on its way and will be with you between 14:00 and 16:00. Thank you for your order. "


def number(client: int, which: int) -> str:
    """A sender number of a client."""
    return f"+4915{client:02}{which:07}"


async def register(tools: Tools) -> Sealer:
    """CLIENTS, and what seals for them."""
    keys: dict[str, ClientKeys] = {}
    for name in CLIENTS:
        await tools.clients.register_client(name, None, actor="system")
        wrapped = await tools.registry.client_keys(name)
        assert wrapped is not None
        keys[name] = ClientKeys.unwrap(name, wrapped, tools.keyring)
    return Sealer(tools.keyring, keys.__getitem__)


async def fill(store: Store, sealer: Sealer, messages: int, partitions: int) -> None:
    """So many messages until now, with their attempts, their history and the statistics."""
    folding = _Folding(sealer, messages, partitions)
    writing: asyncio.Task[None] | None = None
    for first in range(0, messages, SLICE):
        # What is folded next while the database takes what was folded last.
        writes = await asyncio.to_thread(folding.writes, first)
        if writing is not None:
            await writing
        writing = asyncio.create_task(_write(store, writes))
    if writing is not None:
        await writing
    for table in ("messages", "attempts", "audit_log", "statistics", "latencies"):
        await store.select(f"ANALYZE TABLE {table}")


async def _write(store: Store, writes: Sequence[sql.Write]) -> None:
    async with store.transaction() as transaction:
        await transaction.apply(writes)


class _Folding:
    """Slices of the history, one after another, as rows."""

    def __init__(self, sealer: Sealer, messages: int, partitions: int) -> None:
        self._sealer = sealer
        self._messages = messages
        self._partitions = partitions
        self._ends_ms = clock.now_ms() - TOOK_MS
        self._random = random.Random(1)
        self._states: dict[tuple[str, str], bytes | None] = {}
        self._hashes: dict[tuple[int, int], bytes] = {}
        self._last: dict[int, Position] = {}

    def writes(self, first: int) -> list[sql.Write]:
        """The rows of a slice, over all partitions and read models."""
        found: list[sql.Write] = []
        batches: list[list[base.Item]] = [[] for _ in range(self._partitions)]
        for at in range(first, min(first + SLICE, self._messages)):
            batches[at % self._partitions] += self._message(at)
        for stream, batch in enumerate(batches):
            for projection in catalog.projections():
                if not projection.wants(str(stream)):
                    continue
                key = projection.name, str(stream)
                folded, taken, poison = base.fold(projection, key[1], self._states.get(key), batch)
                assert taken == len(batch), poison
                self._states[key] = folded.state
                found += folded.writes
        return found

    def _message(self, at: int) -> Iterator[base.Item]:
        """The events of a message: spread evenly over the days before now."""
        ms = self._ends_ms - (self._messages - at) * DAY_MS // DAY
        partition, client = at % self._partitions, self._random.randrange(len(CLIENTS))
        name, which = CLIENTS[client], self._random.randrange(NUMBERS)
        subject = _id(ms, partition, self._random.randbytes(7))
        sealed = self._sealer.seal(name, subject, number(client, which), f"{BODY}{at}")
        if (hashed := self._hashes.get((client, which))) is None:
            hashed = self._hashes[client, which] = self._sealer.number_hash(name, number(client, which))
        item = partial(self._item, partition, subject)
        yield item(ms, types.MessageSubmitted(name, sealed, hashed), f"client:{name}")
        if at >= self._messages - WAITING:
            return
        if self._random.random() < FAILED:
            refused = types.DeliveryAttempted(name, 1, 1, "webhook", False, 12, 410, "gone")
            yield item(ms + TOOK_MS, refused, WORKER)
            yield item(ms + TOOK_MS, types.Failed(name, 1, 1, "gone"), WORKER)
        else:
            yield item(ms + TOOK_MS, types.DeliveryAttempted(name, 1, 1, "webhook", True, 12, 200), WORKER)
            yield item(ms + TOOK_MS, types.Delivered(name, 1, 1), WORKER)

    def _item(self, partition: int, subject: bytes, ms: int, event: types.Event, actor: str) -> base.Item:
        """At the next position of the partition's stream that is no earlier than `ms`."""
        last = self._last.get(partition)
        position = Position(str(partition), ms, 0)
        if last is not None and last.ms >= ms:
            position = Position(last.stream, last.ms, last.seq + 1)
        self._last[partition] = position
        header = envelope.encode(ms, actor)
        stored = Stored(position, codec.tag_of(event), subject, header, codec.encode(event))
        entry = base.decode(stored)
        assert isinstance(entry, base.Item)
        return entry


def _id(ms: int, partition: int, rest: bytes) -> bytes:
    """A UUIDv7 of that time."""
    made = ms.to_bytes(6, "big") + b"\x70\x00\x80" + rest[:6] + bytes([partition])
    assert ids.created_ms(made) == ms
    return made
