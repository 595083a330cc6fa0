"""Making a stream anew beside what is left of it, and putting it in its place by one script."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, Final, TypeVar

from broker.domain import ids
from broker.events import positions
from broker.events.archive.segments import Entry
from broker.events.connection import Redis, call, translated
from broker.events.keys import ControlKeys, PartitionKeys
from broker.events.log_identity import LogIdentity
from broker.events.positions import Position
from broker.events.repair.history import fields_of
from broker.events.repair.lease import made, places
from broker.events.repair.messages import Ended, MessageFold, Open
from broker.events.repair.plan import StreamPlan
from broker.events.scripting import Arg, Script

T = TypeVar("T")
AT_ONCE: Final = 500
_switch: Final = Script("repair_switch", allow_oom=True)


class Maker:
    """Makes streams of one log on behalf of the repair `token`. Raises as `Remains.read`, and LeaseLost."""

    def __init__(self, redis: Redis, token: str, identity: LogIdentity) -> None:
        self._redis = redis
        self._token = token
        self._identity = identity

    async def make(
        self, plan: StreamPlan, client_keys: Mapping[str, bytes], told: Callable[[int], None]
    ) -> int:
        """Everything of the stream that is to be in Redis; how many events that are."""
        keys = plan.keys
        await call(self._redis.unlink(*(self._made(plan, place) for place in places(keys))))
        kept = await self._events(plan, told)
        if isinstance(keys, PartitionKeys) and plan.messages is not None:
            await self._messages(plan, keys, plan.messages)
            await self._answers(keys, plan.messages, plan.left.now_ms)
        if isinstance(keys, ControlKeys) and plan.registry is not None:
            version = _version(plan)
            entries = {
                field: f"{version}|".encode() + payload for field, payload in plan.registry.entries().items()
            }
            await self._hash(self._made(plan, keys.registry), entries)
            await self._hash(self._made(plan, keys.client_keys), client_keys)
            await self._sign_all_out(keys)
        return kept

    async def switch(self, plan: StreamPlan, whole: bytes = b"") -> None:
        """Put in place what was made; `whole`: the log's identity, for the control slot, which comes last."""
        keys = plan.keys
        gone: list[str] = []
        fields: list[Arg] = []
        if isinstance(keys, PartitionKeys):
            gone = [keys.holds, keys.workers]
        if isinstance(keys, ControlKeys):
            gone = [keys.key_holders, keys.followers]
            fields = ["identity", whole, "complete", "1", "version", _version(plan)]
        pairs = [name for place in places(keys) for name in (self._made(plan, place), place)]
        newest = plan.newest
        archive: list[Arg] = []
        if newest is not None:
            archive = ["position", newest.last, "events", newest.events, "segment", newest.number]
            archive += ["sha256", newest.sha256]
        await _switch(
            self._redis,
            [keys.meta, keys.lease, keys.archive_lease, keys.archive, *gone, *pairs],
            [
                self._token,
                self._identity.incarnations[keys.stream],
                self._identity.log_id,
                self._identity.partitions,
                len(gone),
                0 if newest is None else newest.epoch,
                len(fields) // 2,
                *fields,
                *archive,
            ],
        )

    # -- The stream ---------------------------------------------------------------------------------------

    async def _events(self, plan: StreamPlan, told: Callable[[int], None]) -> int:
        place, kept = self._made(plan, plan.keys.events), 0
        start = positions.start(plan.stream)
        if plan.last == start:
            return 0
        async for _, block in plan.remains.read(plan.after):
            # What else Redis has got since it was looked at cannot be: it is fenced.
            entries = [entry for entry in block if entry.position not in plan.void]
            await self._put(place, entries)
            kept += len(entries)
            told(kept)
        await self._put(place, plan.added)
        kept += len(plan.added)
        if not kept:
            # An empty stream that knows its last id is made by a group, which goes again.
            await call(self._redis.xgroup_create(place, "repair", "$", mkstream=True))
            await call(self._redis.xgroup_destroy(place, "repair"))
        cut = plan.after.entry_id if plan.total > kept else "0-0"
        await call(
            self._redis.execute_command(  # type: ignore[no-untyped-call]
                "XSETID", place, plan.last.entry_id, "ENTRIESADDED", plan.total, "MAXDELETEDID", cut
            )
        )
        return kept

    async def _put(self, place: str, entries: Iterable[Entry]) -> None:
        for some in _in_parts(entries):
            pipe = self._redis.pipeline(transaction=False)
            for entry in some:
                pipe.execute_command("XADD", place, entry.position.entry_id, *fields_of(entry))
            await call(pipe.execute())

    # -- What follows from it -----------------------------------------------------------------------------

    async def _messages(self, plan: StreamPlan, keys: PartitionKeys, fold: MessageFold) -> None:
        found = fold.open
        await self._hash(self._made(plan, keys.open), {name: one.record() for name, one in found.items()})
        bodies = {name: one.body for name, one in found.items() if one.position <= plan.after}
        await self._hash(self._made(plan, keys.bodies), bodies)
        ages = {name: age for name, one in found.items() if (age := _age(one, plan.after)) is not None}
        await self._scores(self._made(plan, keys.age), ages)
        due = {name: one.due for name, one in found.items() if one.phase == "due"}
        await self._scores(self._made(plan, keys.due), due)

    async def _answers(self, keys: PartitionKeys, fold: MessageFold, now_ms: int) -> None:
        """Outcomes and idempotency keys, each in its place: nobody asks while the stream is fenced."""
        gone: dict[str, list[bytes]] = {}
        for name in fold.open:
            gone.setdefault(keys.done(ids.created_ms(name)), []).append(name)
        for place, names in gone.items():
            for some in _in_parts(names):
                await call(self._redis.hdel(place, *some))
        ended: dict[str, dict[bytes, Ended]] = {}
        for name, one in fold.done().items():
            ended.setdefault(keys.done(ids.created_ms(name)), {})[name] = one
        for place, outcomes in ended.items():
            await self._hash(place, {name: one.record() for name, one in outcomes.items()})
            left = max(one.until_ms for one in outcomes.values()) - now_ms
            # What is there already may have to live longer; a place that was just made has no end yet.
            if await call(self._redis.pttl(place)) < left:
                await call(self._redis.pexpire(place, left))
        for used in _in_parts(fold.used().items()):
            pipe = self._redis.pipeline(transaction=False)
            for key, answer in used:
                pipe.set(keys.idempotency(key), answer.record, px=max(1, answer.until_ms - now_ms))
            await call(pipe.execute())

    async def _sign_all_out(self, keys: ControlKeys) -> None:
        """A session that ended after what Redis remembers must not come back; none is in the history."""
        with translated():
            async for name in self._redis.scan_iter(match=f"{_escaped(keys.base)}:session*", count=1000):
                await self._redis.unlink(name)

    async def _hash(self, place: str, values: Mapping[Any, bytes]) -> None:
        for some in _in_parts(values.items()):
            await call(self._redis.hset(place, mapping=dict(some)))

    async def _scores(self, place: str, scores: Mapping[bytes, int]) -> None:
        for some in _in_parts(scores.items()):
            await call(self._redis.zadd(place, dict(some)))

    def _made(self, plan: StreamPlan, place: str) -> str:
        return made(plan.keys, self._token, place)


def _age(one: Open, after: Position) -> int | None:
    """What the message keeps in the stream, by its milliseconds; None where it keeps nothing."""
    if one.position > after:
        return one.position.ms
    return one.stands.ms if one.phase == "ready" else None


def _version(plan: StreamPlan) -> int:
    """Above every version of a registry entry that anybody may have read."""
    return max(int(plan.left.said("version") or 0), plan.total) + 1


def _in_parts(items: Iterable[T]) -> Iterable[list[T]]:
    rest = iter(items)
    while some := list(islice(rest, AT_ONCE)):
        yield some


def _escaped(name: str) -> str:
    return "".join(f"\\{letter}" if letter in "*?[]\\" else letter for letter in name)
