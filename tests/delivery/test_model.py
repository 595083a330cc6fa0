"""A stateful model of the delivery log against the real server: whatever happens, in whatever order."""

from __future__ import annotations

import asyncio
import secrets

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from broker import clock
from broker.domain import message
from broker.domain.message import Accepted, End, Failed, Park, Retry
from broker.errors import Conflict
from broker.events import codec, connection, envelope, types
from broker.events.appender import Appender
from broker.events.claims import Claim, Settlement
from broker.events.connection import GroupMissing
from broker.events.delivery_log import DeliveryLog
from broker.events.open_messages import OpenMessage, look_up
from broker.events.positions import at
from broker.events.reopening import Asked, Reopening
from broker.services.delivery.settlements import settlement
from support import log as logs
from support.examples import examples

CONSUMERS = ("a", "b", "c")
HANDLED = (types.MessageSubmitted, types.DeliveryDue, types.ResendRequested)
PHASES = {message.Ready: "ready", message.Waiting: "due", message.Parked: "parked"}
DECISIONS = {
    "deliver": (End("delivered"), Accepted(200)),
    "fail": (End("failed", reason="no"), Failed("no")),
    "discard": (End("discarded", attempted=False, reason="erased"), None),
    "retry": (Retry(3_600_000), Failed("later")),
    "park": (Park("look"), None),
}


class DeliveryModel(RuleBasedStateMachine):
    """Several consumers, alive, dead and stale, on one partition."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.held: dict[str, list] = {name: [] for name in CONSUMERS}
        self.messages: list[bytes] = []
        self.do(self._create())

    def do(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    async def _create(self) -> None:
        self.redis = connection.connect(self.url)
        name = f"m-{secrets.token_hex(8)}"
        self.keys, self.identity = await logs.create(self.redis, name, 1)
        self.partition = self.keys.partitions[0]
        self.appender = Appender(self.redis, self.keys, self.identity)
        self.reopening = Reopening(
            self.redis, self.keys, self.identity, outcomes_kept_ms=logs.OUTCOMES_KEPT_MS
        )
        self.logs = {
            name: DeliveryLog(
                self.redis, self.partition, self.identity, name, outcomes_kept_ms=logs.OUTCOMES_KEPT_MS
            )
            for name in CONSUMERS
        }
        await self.logs["a"].ensure_group()
        for log in self.logs.values():
            await log.renew([], 60_000)

    def teardown(self) -> None:
        async def clean() -> None:
            keys = [key async for key in self.redis.scan_iter(f"*{self.partition.base}*")]
            if keys:
                await self.redis.delete(*keys)
            await self.redis.aclose()

        self.do(clean())
        self.loop.close()

    # -- What can happen ----------------------------------------------------------------------------------

    @rule(count=st.integers(1, 3))
    def submit(self, count: int) -> None:
        drafts = [logs.draft() for _ in range(count)]
        self.do(self.appender.append(drafts))
        self.messages += [draft.message_id for draft in drafts]

    @rule(name=st.sampled_from(CONSUMERS), count=st.integers(1, 4))
    def read(self, name: str, count: int) -> None:
        self._admit(name, self.do(self.logs[name].read(count, self.redis, block_ms=1)))

    def _admit(self, name: str, claims: list[Claim]) -> None:
        kept, living = self.do(self._kept()), self.do(self._living())
        admitted = self.do(self.logs[name].admit(claims))
        for task in admitted:
            holder, _ = kept.get(task.claim.entry, (name, 0))
            assert holder == name or holder not in living, "another has it in hand"
        self.held[name] += admitted

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data(), kinds=st.lists(st.sampled_from(sorted(DECISIONS)), min_size=1, max_size=4))
    def settle(self, data, kinds) -> None:
        """One call with several settlements, of fresh and stale claims, perhaps sent twice."""
        name = data.draw(st.sampled_from([name for name, held in self.held.items() if held]))
        tasks = data.draw(st.lists(st.sampled_from(self.held[name]), min_size=1, max_size=len(kinds)))
        items = [
            settlement(task, task.claim, *DECISIONS[kind], channel="x", latency_ms=1, actor=f"worker:{name}")
            for task, kind in zip(tasks, kinds, strict=False)
        ]
        owners, kept = self.do(self._pending()), self.do(self._kept())
        for item, position in zip(items, self.do(self.logs[name].settle(items)), strict=True):
            held = (name, item.claim.count) in {owners.get(item.claim.entry), kept.get(item.claim.entry)}
            assert held or position is None, "written without the claim"
        if data.draw(st.booleans()):
            assert set(self.do(self.logs[name].settle(items))) == {None}
        if data.draw(st.booleans()):
            self.held[name] = [task for task in self.held[name] if task not in tasks]

    @rule(name=st.sampled_from(CONSUMERS))
    def renew(self, name: str) -> None:
        """Renewal never changes who owns what."""
        before, kept = self.do(self._pending()), self.do(self._kept())
        claims = [task.claim for task in self.held[name]]
        lost = self.do(self.logs[name].renew(claims, 60_000))
        assert self.do(self._pending()) == before
        for claim in claims:
            owner = before.get(claim.entry)
            if owner is None or owner[0] != name:
                owner = kept.get(claim.entry, owner)
            assert (owner != (name, claim.count)) == (claim.entry in lost) or self._twice(name, claim)

    def _twice(self, name: str, claim: Claim) -> bool:
        """Whether the consumer kept an older claim on the same entry too, which shares its entry id."""
        return len({t.claim.count for t in self.held[name] if t.claim.position == claim.position}) > 1

    @rule(name=st.sampled_from(CONSUMERS))
    def die(self, name: str) -> None:
        """The heartbeat expires; the process may still be there and act on what it held."""
        self.do(self.redis.hset(self.partition.workers, name, clock.now_ms() - 1))

    @rule(name=st.sampled_from(CONSUMERS), idle=st.sampled_from([0, 60_000]), suspect=st.booleans(),
          abandoned=st.booleans())  # fmt: skip
    def take_over(self, name: str, idle: int, suspect: bool, abandoned: bool) -> None:
        claims = self.do(self.logs[name].take_over(idle, 5, suspect=suspect, abandoned=abandoned))
        suspects = [claim for claim in claims if claim.crashes]
        assert len(suspects) <= (1 if suspect else 0)
        self._admit(name, claims)

    @rule(name=st.sampled_from(CONSUMERS), leaving=st.booleans())
    def release(self, name: str, leaving: bool) -> None:
        self.do(self.logs[name].release([task.claim for task in self.held[name]], leaving=leaving))

    @rule()
    def pump(self) -> None:
        """The time of every retry comes; two pumps at once append once."""

        async def twice() -> None:
            for message_id in await self.redis.zrange(self.partition.due, 0, -1):
                await self.redis.zadd(self.partition.due, {message_id: 0})
            await asyncio.gather(self.logs["a"].pump(2), self.logs["b"].pump(2))

        self.do(twice())

    @precondition(lambda self: self.messages)
    @rule(data=st.data(), cycle=st.integers(1, 3))
    def resend(self, data, cycle: int) -> None:
        event = types.ResendRequested("demo", cycle + 1, b"sealed")
        self._asked(
            self.reopening.resend(data.draw(st.sampled_from(self.messages)), event, Asked("user:x", 1))
        )

    @precondition(lambda self: self.messages)
    @rule(data=st.data(), cycle=st.integers(1, 3))
    def unpark(self, data, cycle: int) -> None:
        picked = data.draw(st.sampled_from(self.messages))
        self._asked(self.reopening.unpark(picked, "demo", cycle, Asked("user:x", 1)))

    @precondition(lambda self: self.messages)
    @rule(data=st.data(), cycle=st.integers(1, 3))
    def discard(self, data, cycle: int) -> None:
        picked = data.draw(st.sampled_from(self.messages))
        self._asked(self.reopening.discard(picked, cycle, "by hand", Asked("user:x", 1)))

    def _asked(self, coroutine) -> None:
        try:
            self.do(coroutine)
        except Conflict:
            pass

    @precondition(lambda self: self.messages)
    @rule(data=st.data(), cycle=st.integers(1, 2), made=st.integers(0, 2), attempted=st.booleans())
    def direct(self, data, cycle: int, made: int, attempted: bool) -> None:
        """A direct call, which may know the state or not."""
        number = made + 1 if attempted else made
        item = Settlement(
            kind="done", message_id=data.draw(st.sampled_from(self.messages)), client_id="demo", cycle=cycle,
            attempt=made, outcome="delivered", envelope=envelope.encode(1, "internal:x"), at_ms=1,
            attempted=types.DeliveryAttempted("demo", cycle, number, "direct", True, 1) if attempted else None,
            event=types.Delivered("demo", cycle, number),
        )  # fmt: skip
        self.do(self.logs["a"].settle([item]))

    @rule(order=st.permutations(CONSUMERS), data=st.data())
    def destroy_group(self, order, data) -> None:
        """It comes back when every living consumer has said what it has in hand, and not before."""
        self.do(self.redis.xgroup_destroy(self.partition.events, "delivery"))
        silent = set(order)
        for name in order:
            silent.discard(name)
            in_hand = data.draw(st.sets(st.sampled_from(self.held[name]))) if self.held[name] else ()
            try:
                made = self.do(self.logs[name].ensure_group([task.claim for task in in_hand]))
            except GroupMissing:
                assert silent & self.do(self._living())
                continue
            assert made
            assert not silent & self.do(self._living())
            return
        raise AssertionError("no group, although all have said what they have")

    # -- What must hold -----------------------------------------------------------------------------------

    async def _pending(self) -> dict[str, tuple[str, int]]:
        found = await self.redis.xpending_range(self.partition.events, "delivery", "-", "+", 10_000)
        return {p["message_id"].decode(): (p["consumer"].decode(), p["times_delivered"]) for p in found}

    async def _kept(self) -> dict[str, tuple[str, int]]:
        """Entries that were in hand when the group was lost, by whom and under which count."""
        found = await self.redis.hgetall(self.partition.holds)
        pairs = {entry.decode(): value.decode().split("|") for entry, value in found.items() if b"|" in value}
        return {entry: (holder, int(count)) for entry, (holder, count) in pairs.items()}

    async def _living(self) -> set[str]:
        found = await self.redis.hgetall(self.partition.workers)
        return {name.decode() for name, beat in found.items() if int(beat.split(b"|")[0]) >= clock.now_ms()}

    @invariant()
    def history_and_records_agree(self) -> None:
        """Folding the history is legal at every event and gives what `open` and the outcomes say."""
        self.do(self._check())

    async def _check(self) -> None:
        states: dict[bytes, message.State] = {}
        stands_for: dict[tuple[bytes, int, int], list[str]] = {}
        for entry, fields in await self.redis.xrange(self.partition.events):
            one = codec.recorded(codec.stored(at("0", entry), fields))
            cycle = getattr(one.event, "cycle", 1)
            attempt = getattr(one.event, "attempt", 0)
            name = type(one.event).__name__
            states[one.subject] = message.evolve(states.get(one.subject), name, cycle, attempt)
            if isinstance(one.event, HANDLED):
                stands_for.setdefault((one.subject, cycle, attempt or 1), []).append(entry.decode())
        assert set(states) == set(self.messages)
        found = dict(zip(self.messages, await look_up(self.redis, self.keys, self.messages), strict=True))
        [group] = await self.redis.xinfo_groups(self.partition.events)
        seen, pending = at("0", group["last-delivered-id"]), await self._pending()
        for message_id, state in states.items():
            record = found[message_id]
            if isinstance(state, message.Ended):
                assert (record.outcome, record.cycle, record.attempts) == (
                    state.outcome, state.cycle, state.attempts)  # fmt: skip
                continue
            assert isinstance(record, OpenMessage)
            assert (record.phase, record.cycle, record.attempts) == (
                PHASES[type(state)], state.cycle, state.attempts)  # fmt: skip
            due = await self.redis.zscore(self.partition.due, message_id)
            assert (due is not None) == (record.phase == "due")
            if record.phase == "ready":
                entry = stands_for[message_id, state.cycle, state.attempts + 1][-1]
                assert entry in pending or at("0", entry) > seen, "out of reach"


def test_any_order_of_events_keeps_the_promises(valkey):
    """One outcome per cycle, attempts 1..n, every open message within reach, records equal to the history."""

    class Machine(DeliveryModel):
        url = valkey.url

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples(15, 60),
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
