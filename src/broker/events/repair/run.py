"""Repairing a log: Redis emptied, rolled back or replaced comes back from archive, audit log and its rest.

The history is read once, and everything that lies in Redis follows from it. It is made beside what is there
and put in its place stream by stream, each by one script under the stream's next incarnation; the identity
that names them all comes last, with the control slot. Whatever interrupts a repair, the log is refused until
the next one has gone through, and that one finds all that this one found.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import msgspec

from broker.domain import ids
from broker.errors import Conflict, LogRefused
from broker.events import erasure, key_holders, log_identity, positions, retry_policy, standing
from broker.events.archive.storage import Storage
from broker.events.archive.store import StreamArchive
from broker.events.connection import Redis
from broker.events.key_copies import KeyCopies
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.events.positions import Position
from broker.events.repair import client_keys, left
from broker.events.repair.client_keys import FoundKeys
from broker.events.repair.lease import RepairLease
from broker.events.repair.making import Maker
from broker.events.repair.plan import Planner, Rules, StreamPlan
from broker.events.repair.report import Report, StreamReport
from broker.events.repair.tables import Reader, Tables
from broker.settings import Settings

MOST_LOST: Final = 1000
FORGET_SECONDS: Final = 30.0
Readers = dict[str, dict[str, Reader]]
Told = Callable[[str, int], None]
"""Called with what is being done and how many events that has been done for."""


class State(msgspec.Struct, frozen=True):
    """Why the log is refused, or has to be; who is at work on it."""

    refused: list[str]
    at_work: list[str]


class Work(msgspec.Struct, frozen=True):
    """Everything a repair is going to do."""

    plans: list[StreamPlan]
    readers: Readers
    keys: FoundKeys
    messages_lost: list[str]


class Repair:
    """Repairs the log of `settings` (addresses resolved); `redis` is the one to be repaired.

    `tables` None: nothing is known from a database. All raise LogUnavailable, ArchiveUnavailable,
    ArchiveDamaged, StoreUnavailable, AuditChanged, RepairRefused, LogRefused (another log), UnknownEvent,
    Undecryptable.
    """

    def __init__(
        self,
        redis: Redis,
        settings: Settings,
        storage: Storage,
        copies: Callable[[str], KeyCopies],
        tables: Tables | None = None,
        *,
        told: Told = lambda _what, _events: None,
    ) -> None:
        self._redis = redis
        self._settings = settings
        self._storage = storage
        self._copies = copies
        self._tables = tables
        self._told = told

    async def examine(self) -> Report:
        """What is missing and what a repair would do; nothing is written.

        Of a log that looks right and is in use nothing is counted: it moves.
        """
        identity = await self._identity()
        keys = LogKeys(self._settings.log_name, identity.partitions)
        state = await self._state(keys)
        if state.at_work and not state.refused:
            return Report(log_id=identity.log_id, done=False, refused=[], at_work=state.at_work)
        return _report(identity, state, await self._plan(identity, keys))

    async def run(self) -> Report:
        """Repair. Raises Conflict while another repair is under way, or a healthy log is in use."""
        before = await self._identity()
        keys = LogKeys(self._settings.log_name, before.partitions)
        lease = RepairLease(self._redis, keys)
        async with lease.held():
            # Asked before the fence makes every log look refused.
            state = await self._state(keys)
            if state.at_work and not state.refused:
                raise Conflict(
                    "The log is in order as far as can be seen, and in use "
                    f"({', '.join(state.at_work)}). To repair it all the same, stop every role first."
                )
            await lease.fence(keys.streams)
            try:
                work = await self._plan(before, keys)
            except BaseException:
                await lease.lift(keys.streams)
                raise
            after = await self._next(before, keys, work)
            # Paused for long, as by Ctrl-Z, it must not touch the tables of a later life.
            await lease.check(keys.streams)
            work = await self._adopted(before, keys, after, work)
            kept = await self._make(lease, after, work)
            log_identity.remember(self._settings, after)
            if work.keys.erased:
                await erasure.forget(self._redis, FORGET_SECONDS)
        return _report(after, state, work, kept)

    # -- Looking ------------------------------------------------------------------------------------------

    async def _identity(self) -> LogIdentity:
        """The log that is meant: the data directory's, else Redis'. Raises LogRefused where they differ."""
        remembered = log_identity.read_file(self._settings)
        stored = await log_identity.stored(self._redis, self._settings)
        if remembered is not None and stored is not None and stored.log_id != remembered.log_id:
            raise LogRefused(
                f"Redis holds the log {stored.log_id}, but this data directory belongs to "
                f"{remembered.log_id}: nothing was touched. Point redis_url (BROKER_REDIS_URL) at the right "
                "Redis, or at an empty one."
            )
        found = remembered or stored
        if found is None:
            raise LogRefused(
                f"Neither Redis nor {self._settings.data_dir} knows a log; `broker backup restore` brings "
                "one back, `broker up` begins one."
            )
        return found

    async def _state(self, keys: LogKeys) -> State:
        """Why nobody may use the log as it is, nothing where it looks right; and who does."""
        found = await standing.look(self._redis, keys)
        at_work = [f"{one.owner} projects {name}" for name, one in found.items() if one.owner]
        if workers := await standing.workers(self._redis, keys):
            at_work.append(f"{workers} workers")
        at_work += sorted(await key_holders.holders(self._redis, keys.control))
        try:
            present = await log_identity.load(self._redis, self._settings)
        except LogRefused as error:
            return State([error.detail], at_work)
        refused = [f"{name}: {one.refused}" for name, one in found.items() if one.refused is not None]
        return State(refused or await self._behind(present, keys), at_work)

    async def _behind(self, identity: LogIdentity, keys: LogKeys) -> list[str]:
        """Streams that end before what was archived or applied, or had fewer events, or have another life."""
        readers: Readers = {} if self._tables is None else await self._tables.readers()
        found = []
        for stream in keys.streams:
            archive = StreamArchive(self._storage, identity.log_id, stream.stream)
            newest = await asyncio.to_thread(archive.last)
            of_stream = readers.get(stream.stream, {})
            ends = {name: (one.position, one.events) for name, one in of_stream.items()}
            if newest is not None:
                ends["archive"] = newest.end, newest.events
            # Looked at last: a healthy stream only grows.
            now = await left.look(self._redis, stream)
            found += [
                f"{stream.stream}: it ends at {now.last} after {now.added} events, {name} is at {end} after "
                f"{events}"
                for name, (end, events) in ends.items()
                if now.last < end or now.added < events
            ]
            known = identity.incarnations[stream.stream]
            found += [
                f"{stream.stream}: it is at incarnation {known}, {name} follows {one.incarnation}"
                for name, one in of_stream.items()
                if one.incarnation != known
            ]
        return found

    async def _plan(self, identity: LogIdentity, keys: LogKeys) -> Work:
        rules = Rules(
            self._settings.idempotency_ms, self._settings.outcomes_kept_ms, retry_policy.of(self._settings)
        )
        copies = self._copies(identity.log_id)
        held = await asyncio.to_thread(copies.held)
        planner = Planner(self._redis, self._tables, rules, held.erased)
        plans: list[StreamPlan] = []
        readers: Readers = {} if self._tables is None else await self._tables.readers()
        for stream in keys.streams:
            self._told(f"reading {stream.stream}", sum(plan.total for plan in plans))
            archive = StreamArchive(self._storage, identity.log_id, stream.stream)
            wanted = () if self._tables is None else self._tables.wanted(stream.stream)
            plans.append(await planner.plan(stream, archive, readers.get(stream.stream, {}), wanted))
        control = next(plan for plan in plans if plan.registry is not None)
        assert control.registry is not None  # noqa: S101  it was just found so
        found = await client_keys.find(
            self._redis,
            keys.control,
            copies,
            control.registry,
            rolled_back=control.missing > 0,
        )
        return Work(plans, readers, found, await self._messages_lost(plans))

    async def _messages_lost(self, plans: list[StreamPlan]) -> list[str]:
        lost: list[str] = []
        for plan in plans:
            if self._tables is None or plan.messages is None or "messages" not in plan.wrong:
                continue
            after = plan.known or positions.start(plan.stream)
            found = await self._tables.submitted(plan.stream, after, MOST_LOST)
            lost += [ids.text(one) for one in found if not plan.messages.knows(one)]
        return lost

    # -- Doing --------------------------------------------------------------------------------------------

    async def _next(self, before: LogIdentity, keys: LogKeys, work: Work) -> LogIdentity:
        """The log's next life: a generation above all that anybody knows."""
        known = list(before.incarnations.values())
        known += [one.incarnation or "" for one in (await standing.look(self._redis, keys)).values()]
        known += [one.incarnation for of_stream in work.readers.values() for one in of_stream.values()]
        known += [plan.newest.incarnation for plan in work.plans if plan.newest is not None]
        stored = await log_identity.stored(self._redis, self._settings)
        known += [] if stored is None else list(stored.incarnations.values())
        generation = 1 + max(log_identity.generation(one) for one in known)
        fresh = {stream.stream: log_identity.incarnation(generation) for stream in keys.streams}
        return LogIdentity(before.log_id, before.partitions, fresh)

    async def _adopted(self, before: LogIdentity, keys: LogKeys, after: LogIdentity, work: Work) -> Work:
        """The plan once no transaction of an earlier projector can move a read model any more."""
        if self._tables is None:
            return work
        await self._tables.adopt(after.incarnations)
        now = await self._tables.readers()
        if _places(now) != _places(work.readers):
            return await self._plan(before, keys)
        return work

    async def _make(self, lease: RepairLease, after: LogIdentity, work: Work) -> dict[str, int]:
        """Make and put in place every stream, the control slot last. How many events each holds now."""
        maker = Maker(self._redis, lease.token, after)
        kept: dict[str, int] = {}
        control = next(plan for plan in work.plans if plan.registry is not None)
        for plan in [*(one for one in work.plans if one is not control), control]:
            await lease.check([plan.keys])
            if self._tables is not None and plan.wrong:
                await self._tables.correct(plan.stream, after.incarnations[plan.stream], plan.wrong)
            told = partial(self._written, plan.stream, sum(kept.values()))
            kept[plan.stream] = await maker.make(plan, work.keys.wrapped, told)
            await maker.switch(plan, msgspec.json.encode(after) if plan is control else b"")
        return kept

    def _written(self, stream: str, before: int, events: int) -> None:
        self._told(f"writing {stream}", before + events)


def _report(identity: LogIdentity, state: State, work: Work, kept: Mapping[str, int] | None = None) -> Report:
    registry = next(plan.registry for plan in work.plans if plan.registry is not None)
    lost = [f"{plan.stream}: {plan.missing} events are missing" for plan in work.plans if plan.missing]
    return Report(
        log_id=identity.log_id,
        done=kept is not None,
        refused=state.refused or lost,
        at_work=state.at_work,
        streams=[_stream(plan, kept) for plan in work.plans],
        clients=len(registry.clients),
        certificates=len(registry.certificates),
        users=len(registry.users),
        keys_restored=work.keys.restored,
        keys_lost=work.keys.lost,
        messages_lost=work.messages_lost,
        rebuild=sorted({name for plan in work.plans for name in (*plan.rebuild, *plan.wrong)}),
        incarnations=identity.incarnations,
    )


def _places(readers: Readers) -> dict[tuple[str, str], Position]:
    return {
        (stream, name): one.position
        for stream, of_stream in readers.items()
        for name, one in of_stream.items()
    }


def _stream(plan: StreamPlan, kept: Mapping[str, int] | None) -> StreamReport:
    fold = plan.messages
    phases = [] if fold is None else [one.phase for one in fold.open.values()]
    return StreamReport(
        stream=plan.stream,
        events=plan.total,
        archived=plan.sources["archive"],
        recorded=plan.sources["tables"],
        in_redis=plan.sources["log"],
        missing=plan.missing,
        lost=plan.lost,
        lost_after=str(plan.known) if plan.lost else None,
        void=len(plan.void),
        moved=plan.moved,
        completed=len(plan.added) - plan.moved,
        last=plan.last.entry_id,
        kept=None if kept is None else kept[plan.stream],
        open=None if fold is None else len(phases),
        due=None if fold is None else phases.count("due"),
        parked=None if fold is None else phases.count("parked"),
        outcomes=None if fold is None else len(fold.done()),
        idempotency_keys=None if fold is None else len(fold.used()),
    )
