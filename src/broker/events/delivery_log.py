"""The worker's side of the log: claims, their fence, retries, takeover, and direct outcomes.

Every change goes through a script that checks the claim and the `open` record first, so that a worker that
lost its claim writes nothing and a cycle ends once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from broker.domain import ids
from broker.errors import UnknownEvent
from broker.events import codec, types
from broker.events.claims import Claim, Settlement, Task, packed_bytes, packed_settlement
from broker.events.connection import BLOCK_MS, Redis, call
from broker.events.keys import DELIVERY_GROUP, PartitionKeys
from broker.events.log_identity import LogIdentity
from broker.events.open_messages import parse_open
from broker.events.positions import Position, at
from broker.events.scripting import Arg, Script
from broker.telemetry import get_logger

log = get_logger(__name__)
_pack = msgspec.msgpack.Encoder().encode

_group = Script("group", allow_oom=True)
_admit = Script("admit", allow_oom=True)
_settle = Script("settle", allow_oom=True)
_pump = Script("pump", allow_oom=True)
_renew = Script("renew", allow_oom=True)
_release = Script("release", allow_oom=True)
_takeover = Script("takeover", allow_oom=True)
_sweep = Script("sweep", allow_oom=True)

HOLDS_TTL_MS = 3_600_000
_HANDLED = frozenset({"MessageSubmitted", "DeliveryDue", "ResendRequested"})


class DeliveryLog:
    """Delivery on one partition for one consumer; outcomes stay known for `outcomes_kept_ms` at least."""

    def __init__(
        self,
        redis: Redis,
        partition: PartitionKeys,
        identity: LogIdentity,
        consumer: str,
        group: str = DELIVERY_GROUP,
        *,
        outcomes_kept_ms: int,
    ) -> None:
        self.partition = partition
        self.consumer = consumer
        self._redis = redis
        self._group = group
        self._outcomes_kept_ms = outcomes_kept_ms
        self._incarnation = identity.incarnations[partition.stream]
        self._hand_keys = [partition.meta, partition.events, partition.workers, partition.holds]

    async def ensure_group(self, in_hand: Sequence[Claim] = ()) -> bool:
        """Create the group where it is missing, just before the oldest open message. True if it was.

        `in_hand`: claims from before it was destroyed, which stay this consumer's. Raises GroupMissing while
        a living worker has not said yet what it has in hand.
        """
        keys = self.partition
        args: list[Arg] = [self._incarnation, self._group, self.consumer, HOLDS_TTL_MS]
        created = await _group(
            self._redis,
            [keys.meta, keys.events, keys.open, keys.age, keys.workers, keys.holds],
            args + _claim_args(in_hand),
        )
        return bool(created)

    async def read(self, count: int, redis: Redis, block_ms: int = BLOCK_MS) -> list[Claim]:
        """Claim up to `count` new entries, waiting `block_ms` for the first. Raises GroupMissing.

        `redis` is a connection of its own: a blocking read holds it.
        """
        reply: Any = await call(
            redis.xreadgroup(
                self._group,
                self.consumer,
                {self.partition.events: ">"},
                count=count,
                block=block_ms,
            )
        )
        entries = reply[0][1] if reply else []
        return self._claims((entry, 1, 0, fields) for entry, fields in entries)

    async def admit(self, claims: Sequence[Claim]) -> list[Task]:
        """The claims that stand for an attempt to make now; all others are acknowledged."""
        others = [claim.entry for claim in claims if claim.event is None]
        candidates = [claim for claim in claims if claim.event is not None]
        named = [
            (claim.entry, packed_bytes(claim.message_id), *claim.cycle_and_attempt) for claim in candidates
        ]
        args: list[Arg] = [self._incarnation, self._group, self.consumer, _pack(others), _pack(named)]
        keys = self.partition
        replies = await _admit(
            self._redis, [keys.meta, keys.events, keys.open, keys.bodies, keys.workers, keys.holds], args
        )
        return [
            self._task(claim, *reply)
            for claim, reply in zip(candidates, replies, strict=True)
            if reply is not None
        ]

    async def settle(self, settlements: Sequence[Settlement]) -> list[Position | None]:
        """Write how attempts ended, each only if its claim and `open` still agree; None where they do not."""
        stream = self.partition.stream
        return [None if r is None else at(stream, r or b"0-0") for r in await self.commit(settlements)]

    async def commit(self, settlements: Sequence[Settlement]) -> list[bytes | None]:
        """As `settle`, answering entry ids as Redis writes them; empty for a drop."""
        done_keys = sorted(
            {self.partition.done(ids.created_ms(s.message_id)) for s in settlements if s.kind == "done"}
        )
        items = [packed_settlement(item, self.partition, done_keys) for item in settlements]
        args: list[Arg] = [
            self._incarnation,
            self._group,
            self.consumer,
            self._outcomes_kept_ms,
            _pack(items),
        ]
        keys = self.partition
        replies: list[bytes | None] = await _settle(
            self._redis,
            [keys.meta, keys.events, keys.open, keys.age, keys.due, keys.bodies, keys.holds, *done_keys],
            args,
        )
        return replies

    async def renew(self, claims: Sequence[Claim], alive_ms: int) -> set[str]:
        """Heartbeat, and keep `claims` from growing idle. Gives the entry ids of those that were lost.

        Raises GroupMissing, the heartbeat having been written.
        """
        args: list[Arg] = [self._incarnation, self._group, self.consumer, alive_ms]
        lost = await _renew(self._redis, self._hand_keys, args + _claim_args(claims))
        return {entry.decode() for entry in lost}

    async def release(self, claims: Sequence[Claim], *, leaving: bool = False, shelf: str = "") -> int:
        """Hand claims back for others to take at once; `leaving` also ends the heartbeat.

        `shelf`: what they wait for; takers who wait for it too leave them.
        """
        args: list[Arg] = [self._incarnation, self._group, self.consumer, "1" if leaving else "0", shelf]
        return int(await _release(self._redis, self._hand_keys, args + _claim_args(claims)))

    async def take_over(
        self, idle_ms: int, count: int, *, suspect: bool, abandoned: bool = True, leave: Sequence[str] = ()
    ) -> list[Claim]:
        """Claim what nobody works on. At most one of them has crashes, and only if `suspect` allows it.

        Without `abandoned` only what was handed back: for callers that cannot tell the dead from those who
        could not reach Redis either. `leave`: shelves that are not to be taken from.
        """
        keys = self.partition
        replies = await _takeover(
            self._redis,
            [keys.meta, keys.events, keys.open, keys.workers],
            [
                self._incarnation,
                self._group,
                self.consumer,
                idle_ms,
                count,
                "1" if suspect else "0",
                "1" if abandoned else "0",
                _pack([f"-{shelf}" for shelf in leave]),
            ],
        )
        return self._claims(
            (entry, delivered, crashes, dict(zip(fields[::2], fields[1::2], strict=True)))
            for entry, delivered, crashes, fields in replies
        )

    async def sweep(self, count: int = 200) -> tuple[int, int]:
        """Hand out open messages that nobody would come upon, such as those an XGROUP SETID went past.

        How many there were, and how many the stream has no entry of any more. Raises GroupMissing.
        """
        keys = self.partition
        cursor, handed_out, gone = b"0", 0, 0
        while True:
            args: list[Arg] = [self._incarnation, self._group, cursor, count]
            cursor, found, missing = await _sweep(
                self._redis, [keys.meta, keys.events, keys.open, keys.holds], args
            )
            handed_out += found
            gone += missing
            if cursor == b"0":
                return handed_out, gone

    async def pump(self, count: int = 500) -> tuple[int, int | None]:
        """Turn due retries into events: how many, and milliseconds until the next (None: none waits)."""
        keys = self.partition
        appended, wait = await _pump(
            self._redis,
            [keys.meta, keys.events, keys.open, keys.age, keys.due],
            [self._incarnation, keys.stream, count],
        )
        return int(appended), None if wait < 0 else int(wait)

    async def retries_due(self) -> int:
        """How many retries wait in `due`."""
        return int(await call(self._redis.zcard(self.partition.due)))

    def _claims(self, entries: Iterable[tuple[bytes, int, int, dict[bytes, bytes]]]) -> list[Claim]:
        claims: list[Claim] = []
        stream = self.partition.stream
        for entry, count, crashes, fields in entries:
            tag = fields.get(b"t", b"").decode("utf-8", "replace")
            event = None
            if tag.partition(".")[0] in _HANDLED:
                try:
                    event = codec.decode(tag, fields[b"d"])
                except UnknownEvent as error:
                    # Written by a newer version: left pending for a worker that can read it.
                    log.error("entry_not_readable", stream=stream, entry=entry.decode(), reason=str(error))
                    continue
            claims.append(Claim(stream, entry.decode(), fields.get(b"s", b""), event, count, crashes))
        return claims

    def _task(self, claim: Claim, record: bytes, body: bytes | None) -> Task:
        opened = parse_open(self.partition.stream, claim.message_id, record)
        event = claim.event
        if body:
            tag, _, data = body.partition(b"|")
            try:
                event = codec.decode(tag.decode("utf-8", "replace"), data)
            except UnknownEvent as error:
                # One damaged body must not keep the other claims from being handled.
                log.error("body_not_readable", message_id=claim.message_id.hex(), reason=str(error))
                event = None
        sealed = event.sealed if isinstance(event, types.MessageSubmitted | types.ResendRequested) else None
        return Task(claim, opened, sealed)


def _claim_args(claims: Sequence[Claim]) -> list[Arg]:
    args: list[Arg] = []
    for claim in claims:
        args += (claim.entry, claim.count)
    return args
