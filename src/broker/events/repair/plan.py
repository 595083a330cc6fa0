"""What a repair will make of one stream: its whole history read once, and what follows from it."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from broker.domain import retry
from broker.domain.retry import RetryPolicy
from broker.errors import BrokerError
from broker.events import codec, envelope, positions, types
from broker.events.archive.segments import Entry, Manifest
from broker.events.archive.store import StreamArchive
from broker.events.codec import Stored
from broker.events.connection import Redis
from broker.events.keys import PartitionKeys, StreamKeys
from broker.events.open_messages import FinishedMessage
from broker.events.positions import CONTROL, Position
from broker.events.repair import left
from broker.events.repair.history import Remains, Source
from broker.events.repair.left import Left
from broker.events.repair.messages import MessageFold, Open
from broker.events.repair.registry import RegistryFold
from broker.events.repair.tables import Reader, Tables

ACTOR: Final = "system"
RAN_OUT: Final = "the attempts ran out; recorded by a repair of the log"
KNOWN: Final = "as the tables know; recorded by a repair of the log"
_DIGEST: Final = codec.tag_of(types.DigestSigned(0, "", b""))


class RepairRefused(BrokerError):
    """The log cannot be repaired like this."""

    code = "repair_refused"


class Rules(msgspec.Struct, frozen=True):
    """What does not stand in the history: settings."""

    idempotency_ms: int
    outcomes_kept_ms: int
    retry: RetryPolicy


@dataclass
class StreamPlan:
    """One stream. `after`: what of the history lies after it goes to Redis; `total`: events in all."""

    keys: StreamKeys
    left: Left
    newest: Manifest | None
    readers: Mapping[str, Reader]
    remains: Remains
    end: Position
    """Of the history as it was found."""
    after: Position
    sources: dict[Source, int] = field(default_factory=lambda: {"archive": 0, "tables": 0, "log": 0})
    messages: MessageFold | None = None
    registry: RegistryFold | None = None
    void: set[Position] = field(default_factory=set)
    """Of events that an older Redis took in and that contradict what was known before."""
    added: list[Entry] = field(default_factory=list)
    """What comes after the history: strays in their new places, and what completes a torn end."""
    moved: int = 0
    missing: int = 0
    known: Position | None = None
    """The end of what archive and audit log know."""
    total: int = 0
    upto: dict[str, int] = field(default_factory=dict)
    """How many events of the history lie up to each read model's position."""
    places: dict[str, Position] = field(default_factory=dict)
    """Of the last of those."""
    rebuild: list[str] = field(default_factory=list)
    """Read models that cannot go on from where they are."""

    @property
    def stream(self) -> str:
        """Its name."""
        return self.keys.stream

    @property
    def last(self) -> Position:
        """The id that the stream's next ones must be above."""
        known = [self.end, self.left.last, *(reader.position for reader in self.readers.values())]
        if self.newest is not None:
            known.append(self.newest.end)
        return max(known + [entry.position for entry in self.added[-1:]])

    @property
    def wrong(self) -> dict[str, tuple[Position, int]]:
        """Read models that have applied another history, and where they stand in this one."""
        return {
            name: (self.places[name], self.upto[name])
            for name, one in self.readers.items()
            if (one.position, one.events) != (self.places[name], self.upto[name])
        }

    @property
    def lost(self) -> int:
        """Events that a read model has applied and nobody has any more."""
        return max([0, *(one.events - self.upto[name] for name, one in self.readers.items())])

    @property
    def contradicted(self) -> bool:
        """Whether some of what Redis took in is not in the history, or not where it was."""
        return bool(self.void) or self.moved > 0


class Planner:
    """Plans streams one after another, partitions first.

    Raises as `Remains.read`, and RepairRefused, UnknownEvent.
    """

    def __init__(self, redis: Redis, tables: Tables | None, rules: Rules, erased: Iterable[str] = ()) -> None:
        """`erased`: clients whose copies of keys were destroyed for good."""
        self._redis = redis
        self._tables = tables
        self._rules = rules
        self._erased = sorted(erased)
        self._contradicted = False

    async def plan(
        self, keys: StreamKeys, archive: StreamArchive, readers: Mapping[str, Reader], wanted: Iterable[str]
    ) -> StreamPlan:
        """Read the stream's history; nothing is written."""
        found = await left.look(self._redis, keys)
        newest = await asyncio.to_thread(archive.last)
        start = positions.start(keys.stream)
        remains = Remains(self._redis, keys, archive, self._tables)
        plan = StreamPlan(keys, found, newest, readers, remains, end=start, after=start)
        plan.upto, plan.places = dict.fromkeys(readers, 0), dict.fromkeys(readers, start)
        if isinstance(keys, PartitionKeys):
            plan.messages = MessageFold(
                found.now_ms,
                idempotency_ms=self._rules.idempotency_ms,
                outcomes_kept_ms=self._rules.outcomes_kept_ms,
            )
        elif keys.stream == CONTROL:
            plan.registry = RegistryFold()
        await self._read(plan)
        await self._append(plan)
        plan.after = _needed(plan, wanted)
        self._contradicted = self._contradicted or plan.contradicted
        return plan

    async def _read(self, plan: StreamPlan) -> None:
        async for source, found in plan.remains.read(positions.start(plan.stream)):
            if source == "log" and plan.known is None:
                plan.known, plan.missing = plan.end, plan.remains.missing
                _check_gap(plan, found[0].position)
            block = self._taken(plan, source, found)
            if not block:
                continue
            plan.sources[source] += len(block)
            plan.end = block[-1].position
            for name, reader in plan.readers.items():
                if known := _upto(block, reader.position):
                    plan.upto[name] += known
                    plan.places[name] = block[known - 1].position
        plan.known, plan.missing = plan.known or plan.end, plan.remains.missing
        plan.total = sum(plan.sources.values())
        if not plan.left.length and plan.left.last > plan.end:
            _check_gap(plan, None)

    def _taken(self, plan: StreamPlan, source: Source, found: list[Entry]) -> list[Entry]:
        """What of a block belongs to the history; it is folded."""
        kept = []
        for entry in found:
            if source == "log" and not self._believed(plan, entry, strict=plan.missing > 0):
                plan.void.add(entry.position)
                continue
            _apply(plan, entry)
            kept.append(entry)
        return kept

    def _believed(self, plan: StreamPlan, entry: Entry, *, strict: bool) -> bool:
        """Whether what only Redis has can follow; `strict` where Redis took it in after a loss."""
        if not isinstance(entry, Stored):
            return True
        if entry.tag == _DIGEST and (self._contradicted or plan.contradicted or plan.remains.strays):
            # It vouches for events that are not in the history now.
            return False
        fold = plan.messages or plan.registry
        return not strict or fold is None or fold.allows(entry)

    async def _append(self, plan: StreamPlan) -> None:
        """Strays get places at the end, and what an attempt led to is completed where that was lost."""
        for stray in sorted(plan.remains.strays, key=lambda entry: entry.position):
            if self._believed(plan, stray, strict=True):
                place = left.following(plan.last, plan.left.now_ms)
                self._add(plan, msgspec.structs.replace(stray, position=place))
                plan.moved += 1
            else:
                plan.void.add(stray.position)
        if plan.registry is not None:
            self._erase_again(plan, plan.registry)
        if plan.messages is None:
            return
        torn = [(one, found) for one, found in plan.messages.open.items() if found.tried is not None]
        for message_id, found in torn:
            self._complete(plan, message_id, found)
        if self._tables is not None and "messages" in plan.wrong:
            for ended in await self._tables.outcomes(list(plan.messages.open)):
                self._end(plan, ended)

    def _erase_again(self, plan: StreamPlan, registry: RegistryFold) -> None:
        """The erasures that only the copies of the keys still know."""
        for name in self._erased:
            for subject, event in registry.erasing(name):
                place = left.following(plan.last, plan.left.now_ms)
                stored = envelope.encode(plan.left.now_ms, ACTOR)
                entry = Stored(place, codec.tag_of(event), subject.encode(), stored, codec.encode(event))
                self._add(plan, entry)

    def _complete(self, plan: StreamPlan, message_id: bytes, found: Open) -> None:
        """The event that followed an attempt in one step with it, and was lost."""
        cause, succeeded = found.tried or (found.position, False)
        event: types.MessageEvent
        if succeeded:
            event = types.Delivered(found.client, found.cycle, found.attempts)
        elif retry.exhausted(self._rules.retry, found.attempts):
            event = types.Failed(found.client, found.cycle, found.attempts, RAN_OUT)
        else:
            event = types.RetryScheduled(found.client, found.cycle, found.attempts, 0)
        self._record(plan, message_id, found, event, cause)

    def _end(self, plan: StreamPlan, ended: FinishedMessage) -> None:
        """The outcome that only the tables still know."""
        assert plan.messages is not None  # noqa: S101  asked of partitions only
        found = plan.messages.open.get(ended.message_id)
        if found is None or ended.cycle < found.cycle:
            return
        kinds = {"delivered": types.Delivered, "failed": types.Failed, "discarded": types.MessageDiscarded}
        more = () if ended.outcome == "delivered" else (KNOWN,)
        event = kinds[ended.outcome](found.client, found.cycle, ended.attempts, *more)
        self._record(plan, ended.message_id, found, event, found.stands)

    def _record(
        self, plan: StreamPlan, message_id: bytes, found: Open, event: types.MessageEvent, cause: Position
    ) -> None:
        stored = envelope.splice(plan.left.now_ms, ACTOR, found.correlation, str(cause))
        place = left.following(plan.last, plan.left.now_ms)
        self._add(plan, Stored(place, codec.tag_of(event), message_id, stored, codec.encode(event)))

    def _add(self, plan: StreamPlan, entry: Entry) -> None:
        plan.added.append(entry)
        plan.total += 1
        _apply(plan, entry)


def _apply(plan: StreamPlan, entry: Entry) -> None:
    fold = plan.messages or plan.registry
    if fold is not None:
        fold.apply(entry)


def _upto(block: list[Entry], position: Position) -> int:
    """How many of the block lie up to a position."""
    if block[-1].position <= position:
        return len(block)
    return bisect_right(block, position, key=lambda entry: entry.position)


def _check_gap(plan: StreamPlan, first: Position | None) -> None:
    """Refuse where Redis goes on after events that are nowhere. Raises RepairRefused."""
    known = sum(plan.sources.values())
    if plan.left.first == first and plan.left.trimmed > known:
        raise RepairRefused(
            f"Of stream {plan.stream} {plan.left.trimmed} events were archived and cut, {known} are found: "
            "bring the archive's files back, or correct archive_url."
        )


def _needed(plan: StreamPlan, wanted: Iterable[str]) -> Position:
    """After where Redis must hold the stream: for the archiver, each read model, and whoever delivers."""
    start = positions.start(plan.stream)
    archived = start if plan.newest is None else min(plan.newest.end, plan.end)
    at = dict.fromkeys(wanted, start) | {name: one.position for name, one in plan.readers.items()}
    needs = [archived]
    for name, position in at.items():
        if position > start or archived == start or (plan.left.length and plan.left.floor == start):
            needs.append(min(position, plan.end))
        else:
            plan.rebuild.append(name)
    if plan.messages is not None:
        ready = [one.stands for one in plan.messages.open.values() if one.phase == "ready"]
        needs += [left.before(position) for position in ready]
    return min(needs)
