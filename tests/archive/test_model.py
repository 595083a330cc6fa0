"""Appends, deliveries, restarts and trims in any order: nothing of history is lost, every open message deliverable."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from broker.domain.message import End, Park, Retry
from broker.errors import Conflict
from broker.events import connection, types
from broker.events.appender import Appender
from broker.events.archive import trimming
from broker.events.archive.archiver import Archiver, Limits
from broker.events.archive.trimming import Trimmer
from broker.events.delivery_log import DeliveryLog
from broker.events.feed import Feed
from broker.events.open_messages import OpenMessage, look_up
from broker.events.positions import Position, at, start
from broker.events.reopening import Asked, Reopening
from broker.services.delivery.settlements import settlement
from support import archives, histories, log
from support import log as logs
from support.examples import examples

DECISIONS = {"deliver": End("delivered"), "fail": End("failed", reason="no"), "retry": Retry(3_600_000),
             "park": Park("look")}  # fmt: skip
NEVER = Limits(size=10**9, seconds=3600.0, poll=0.0, page=7)
SOME = Limits(size=600, seconds=3600.0, poll=0.0, page=7)


class ArchiveModel(RuleBasedStateMachine):
    """One partition with a worker, one projection's checkpoint, and archivers that come and go."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.directory = tempfile.TemporaryDirectory()
        self.messages: list[bytes] = []
        self.held: list = []
        self.seen: list = []
        self.checkpoint = (start("0"), 0)
        self.owners = 0
        self.do(self._create())

    def do(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    async def _create(self) -> None:
        self.redis = connection.connect(self.url)
        self.keys, self.identity = await logs.create(self.redis, f"m-{secrets.token_hex(8)}", 1)
        self.partition = self.keys.partitions[0]
        self.appender = Appender(self.redis, self.keys, self.identity)
        self.reopening = Reopening(
            self.redis, self.keys, self.identity, outcomes_kept_ms=log.OUTCOMES_KEPT_MS
        )
        self.worker = DeliveryLog(
            self.redis, self.partition, self.identity, "w", outcomes_kept_ms=log.OUTCOMES_KEPT_MS
        )
        await self.worker.ensure_group()
        await self.worker.renew([], 60_000)
        self.feed = Feed(self.redis, self.partition, "inc-0", "projector", 60.0)
        assert await self.feed.acquire() == 0
        await self._new_owner()

    async def _new_owner(self) -> None:
        """An archiver that takes the lease over from whoever has it."""
        self.owners += 1
        await self.redis.hset(self.partition.archive_lease, mapping={"owner": "", "expires": "0"})
        self.archiver = archives.archiver(
            self.redis, self.partition, Path(self.directory.name), owner=f"a{self.owners}", ttl=60.0,
            limits=NEVER,
        )  # fmt: skip
        await self._begin(self.archiver)

        async def needs():
            return {"0": {"messages": self.checkpoint[0]}}

        self.trimmer = Trimmer([self.archiver], needs, lambda: 0)

    async def _begin(self, archiver: Archiver) -> None:
        """Let it own the stream, without its loop: the rules say when it reads and seals."""
        task = asyncio.ensure_future(archiver._own(asyncio.Event()))
        while not archiver.owning:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait((task,))
        archiver._limits = SOME

    def teardown(self) -> None:
        async def clean() -> None:
            keys = [key async for key in self.redis.scan_iter(f"*{self.partition.base}*")]
            await self.redis.delete(*keys)
            await self.redis.aclose()

        self.do(clean())
        self.loop.close()
        self.directory.cleanup()

    # -- What can happen ----------------------------------------------------------------------------------

    @rule(count=st.integers(1, 4))
    def submit(self, count: int) -> None:
        drafts = [logs.draft() for _ in range(count)]
        self.do(self.appender.append(drafts))
        self.messages += [draft.message_id for draft in drafts]

    @rule(fields=st.sampled_from([{b"x": b"y"}, {b"t": b"\xff", b"s": b"", b"m": b"", b"d": b""}]))
    def append_rubbish(self, fields) -> None:
        self.do(self.redis.xadd(self.partition.events, fields))

    @rule(count=st.integers(1, 6))
    def read(self, count: int) -> None:
        claims = self.do(self.worker.read(count, self.redis, block_ms=1))
        self.held += self.do(self.worker.admit(claims))

    @precondition(lambda self: self.held)
    @rule(kinds=st.lists(st.sampled_from(sorted(DECISIONS)), min_size=1, max_size=4))
    def settle(self, kinds) -> None:
        tasks, self.held = self.held[: len(kinds)], self.held[len(kinds) :]
        items = [
            settlement(task, task.claim, DECISIONS[kind], None, channel="x", latency_ms=1, actor="worker:w")
            for task, kind in zip(tasks, kinds, strict=False)
        ]
        self.do(self.worker.settle(items))

    @rule()
    def lose_claims(self) -> None:
        """The worker dies and another takes over what it had."""
        self.held = []
        self.do(self.redis.hset(self.partition.workers, self.worker.consumer, 1))
        other = DeliveryLog(
            self.redis,
            self.partition,
            self.identity,
            f"w{secrets.token_hex(3)}",
            outcomes_kept_ms=log.OUTCOMES_KEPT_MS,
        )
        self.do(other.renew([], 60_000))
        self.worker = other
        self.held += self.do(other.admit(self.do(other.take_over(0, 50, suspect=True))))

    @rule()
    def pump(self) -> None:
        async def all_due() -> None:
            for message_id in await self.redis.zrange(self.partition.due, 0, -1):
                await self.redis.zadd(self.partition.due, {message_id: 0})
            await self.worker.pump()

        self.do(all_due())

    @precondition(lambda self: self.messages)
    @rule(data=st.data())
    def unpark(self, data) -> None:
        try:
            picked = data.draw(st.sampled_from(self.messages))
            self.do(self.reopening.unpark(picked, "demo", 1, Asked("user:x", 1)))
        except Conflict:
            pass

    @precondition(lambda self: self.messages)
    @rule(data=st.data(), cycle=st.integers(2, 3))
    def resend(self, data, cycle: int) -> None:
        try:
            picked = data.draw(st.sampled_from(self.messages))
            event = types.ResendRequested("demo", cycle, b"sealed")
            self.do(self.reopening.resend(picked, event, Asked("user:x", 1)))
        except Conflict:
            pass

    @rule()
    def destroy_group(self) -> None:
        self.do(self.redis.xgroup_destroy(self.partition.events, "delivery"))
        self.trim()
        self.held = []
        assert self.do(self.worker.ensure_group())

    @rule(count=st.integers(1, 12))
    def project(self, count: int) -> None:
        """A read model goes on from its checkpoint; it never finds that something left before it."""
        position, events = self.checkpoint
        page = self.do(self.feed.read(position, events, position, count))
        if page.entries:
            self.seen += page.entries
            self.checkpoint = (page.entries[-1].position, events + len(page.entries))

    @rule()
    def archive(self) -> None:
        """Read and perhaps seal."""
        self.do(self.archiver._step(asyncio.Event()))

    @rule()
    def replace_archiver(self) -> None:
        """Killed with what it had gathered; the next begins at the last segment."""
        self.do(self._new_owner())

    @precondition(lambda self: self.archiver._segment.count)
    @rule(recorded=st.booleans(), manifest=st.booleans())
    def die_while_sealing(self, recorded: bool, manifest: bool) -> None:
        """⚠ Killed after the content, after the manifest, or after Redis knew."""

        async def seal() -> None:
            content, digest = self.archiver._segment.pack()
            made = self.archiver._manifest(len(content), digest)
            self.archiver.archive.put_segment(made, content)
            if manifest:
                self.archiver.archive.put_manifest(made)
                if recorded:
                    await self.archiver._recorded(made)
                    self.archiver.status.sealed = made
                    await self.trimmer.round()
            await self._new_owner()

        self.do(seal())

    @rule()
    def trim(self) -> None:
        self.do(self.trimmer.round())

    # -- What must hold -----------------------------------------------------------------------------------

    @invariant()
    def nothing_is_lost(self) -> None:
        self.do(self._check())

    async def _check(self) -> None:
        whole = await archives.whole(self.redis, self.partition, self.archiver.archive)
        added = 0
        if await self.redis.exists(self.partition.events):
            added = (await self.redis.xinfo_stream(self.partition.events))["entries-added"]
        assert len(whole) == added, "a gap or an overlap"
        positions = [one.position for one in whole]
        assert positions == sorted(set(positions))
        assert archives.same(self.seen, whole[: len(self.seen)]), "the read model saw another history"
        await self._deliverable()

    async def _deliverable(self) -> None:
        """Every open message has its ciphertext, and what stands for its next attempt is within reach."""
        lying = {one.position for one in await archives.lying(self.redis, self.partition)}
        bodies = await self.redis.hkeys(self.partition.bodies)
        [group] = [
            g for g in await self.redis.xinfo_groups(self.partition.events) if g["name"] == b"delivery"
        ] or [None]
        if group is None:
            return
        pending = {
            Position("0", *map(int, one["message_id"].split(b"-")))
            for one in await self.redis.xpending_range(self.partition.events, "delivery", "-", "+", 10_000)
        }
        seen = at("0", group["last-delivered-id"])
        for one in await look_up(self.redis, self.keys, self.messages):
            if not isinstance(one, OpenMessage):
                continue
            assert one.position in lying or one.message_id in bodies, "the body is gone"
            if one.phase == "ready":
                record = await self.redis.hget(self.partition.open, one.message_id)
                cause = record.split(b"|", 8)[6].decode()
                stands = one.position if not cause else Position("0", *map(int, cause.split("-")))
                assert stands in lying, "what stands for the attempt is gone"
                assert stands in pending or stands > seen, "out of reach"


def test_any_order_keeps_history_whole(valkey, monkeypatch):
    """Archive and stream equal everything ever appended, a read model sees all of it, open messages stay whole."""
    monkeypatch.setattr(trimming, "BODIES", 1)

    class Machine(ArchiveModel):
        url = valkey.url

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples(12, 60),
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


def test_the_check_sees_a_gap(valkey, tmp_path):
    """The machine's own check fails when an event is cut that is not archived: it can fail."""

    class Machine(ArchiveModel):
        url = valkey.url

    machine = Machine()
    machine.do(histories.append(machine.redis, machine.partition, histories.happy(3)))
    machine.nothing_is_lost()
    machine.do(machine.redis.xtrim(machine.partition.events, maxlen=4, approximate=False))
    try:
        machine.nothing_is_lost()
    except Exception as error:  # noqa: BLE001  whichever of its checks finds it first
        assert "lost its first" in str(error) or isinstance(error, AssertionError)
    else:
        raise AssertionError("not seen")
    machine.teardown()
