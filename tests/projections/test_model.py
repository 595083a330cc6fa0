"""Events, projectors, archivers, cuts, damage and rebuilds in any order: the tables are what the whole history says."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from redis.exceptions import ResponseError

from broker.errors import LeaseLost, StoreUnavailable
from broker.events import connection, types
from broker.events.archive.archiver import Limits
from broker.events.archive.store import StreamArchive
from broker.events.archive.trimming import Trimmer
from broker.projections import catalog, runner, schema
from broker.projections.rebuild import progress, run, shadow
from broker.projections.rebuild.progress import RebuildCancelled
from broker.projections.store import Store
from broker.services.projector.archiving import Archiving
from support import archives, databases, folding, histories, log, readmodels, rebuilds
from support.examples import examples
from support.histories import Fact
from support.mortals import Fall, InterruptedSource, Killed, MortalStorage, MortalStore
from support.waiting import wait_until

PROJECTIONS = {each.name: each for each in catalog.projections()}
NAMES = sorted(PROJECTIONS)
# One carries a state from batch to batch, the other two have the rows that most events change.
OFTEN = ("audit_log", "messages", "statistics", *NAMES)
BATCH = 2
"""Events a transaction, so that nearly everything happens between two of them."""
STREAMS = ("0", "control", "access")
MOST = ("0", "0", "0", "control", "control", "access")
DAMAGE = {
    "messages": "UPDATE messages SET status='failed',attempt_count=9",
    "attempts": "DELETE FROM attempts",
    "audit_log": "DELETE FROM audit_log LIMIT 3",
    "statistics": "DROP TABLE statistics",
    "users": "DELETE FROM users",
    "clients": "UPDATE clients SET status='erased'",
}
OUTCOMES = ("delivered", "failed", "retried", "parked")
AFFAIRS = ("user", "role", "disabled", "client", "route", "read")
MEANWHILE = ("submit", "project", "project", "archive", "affair", "cancel")
NOW = asyncio.Event()
NOW.set()

falls = st.builds(
    Fall, st.integers(0, 40), st.sampled_from(("before", "after")), st.sampled_from(("dies", "cut off"))
)
deaths = st.builds(Fall, st.integers(0, 70), st.sampled_from(("before", "after")))


class Place:
    """A log's server and a database; one of each for all machines, which clear the database."""

    def __init__(self, redis_url: str, url: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.url = url
        self.store = Store(url)
        self.redis = connection.connect(redis_url)

    def close(self) -> None:
        self.loop.run_until_complete(self.store.close())
        self.loop.run_until_complete(self.redis.aclose())
        self.loop.close()

    async def cleared(self) -> None:
        """Every table there and empty, whatever a failed machine left."""
        tables = [table for each in PROJECTIONS.values() for table in each.tables]
        async with self.store.session() as session:
            for ending in (shadow.NEXT, shadow.OLD):
                await shadow.drop(session, tables, ending)
            missing = sorted(set(tables) - await shadow.existing(session, tables))
            if missing:
                await shadow.create(session, missing, "")
        databases.clear(self.url)


class Model(RuleBasedStateMachine):
    """A log of one partition, its archive, and one database; nothing runs but what a rule runs."""

    place: Place

    def __init__(self) -> None:
        super().__init__()
        self.broken = False
        self.directory = tempfile.TemporaryDirectory()
        self.where = Path(self.directory.name)
        self.history: dict[str, list[folding.Placed]] = {name: [] for name in STREAMS}
        self.open: list[tuple[Fact, int, int]] = []
        """Messages with their cycle and the attempts in it."""
        self.people = 0
        self.fallen = False
        """Whether anything was killed or cut off from the database."""
        self.damaged: set[str] = set()
        self.owners = itertools.count()
        self.record = self._record
        self.runners: dict[str, runner.StreamRunner] = {}
        self.archivers: dict[str, object] = {}
        self.do(self._create())

    def do(self, coroutine):
        try:
            return self.place.loop.run_until_complete(coroutine)
        except BaseException:
            self.broken = True
            raise

    async def _create(self) -> None:
        await self.place.cleared()
        self.redis, self.store = self.place.redis, self.place.store
        self.name = f"m-{secrets.token_hex(8)}"
        self.keys, self.identity = await log.create(self.redis, self.name, 1)
        self.streams = {stream.stream: stream for stream in self.keys.streams}
        self.source = rebuilds.source(self.redis, self.keys, self.identity, self.where)
        # Its needs are those of the role; the rest of that is not wanted here.
        self.needing = object.__new__(Archiving)
        self.needing._identity, self.needing._store = self.identity, self.store
        self.needing._projections, self.needing._streams = list(PROJECTIONS.values()), list(STREAMS)

    def teardown(self) -> None:
        try:
            if not self.broken:
                self.do(self._end())
        finally:
            self.place.loop.run_until_complete(self._remove())
            self.directory.cleanup()

    async def _remove(self) -> None:
        await self.redis.delete(*[key async for key in self.redis.scan_iter(f"*{self.name}*")])

    # -- Events -------------------------------------------------------------------------------------------

    async def _append(self, stream: str, facts: list[Fact]) -> None:
        found = await histories.append(self.redis, self.streams[stream], facts)
        self.history[stream] += zip(found, facts, strict=True)

    async def _submit(self, count: int) -> None:
        made = [histories.submitted() for _ in range(count)]
        self.open += [(one, 1, 0) for one in made]
        await self._append("0", made)

    async def _outcome(self, one: Fact, cycle: int, attempt: int, kind: str) -> list[Fact]:
        client = one.event.client_id
        tried = histories.attempted(one, attempt, ok=kind == "delivered", cycle=cycle, code=attempt)
        after: list[types.Event]
        match kind:
            case "delivered":
                after = [types.Delivered(client, cycle, attempt)]
            case "failed":
                after = [types.Failed(client, cycle, attempt, "no")]
            case "retried":
                after = [types.RetryScheduled(client, cycle, attempt, 50)]
            case _:
                after = [types.MessageParked(client, cycle, attempt, "look")]
        return [tried, *(Fact(one.subject, event, one.at + attempt) for event in after)]

    @initialize(count=st.integers(2, 6), steps=st.integers(0, 9))
    def begin(self, count: int, steps: int) -> None:
        """Some messages and a user, and projectors that have some of that already."""
        self.do(self._submit(count))
        self.do(self._deliver([(number, OUTCOMES[number % 3]) for number in range(count)]))
        self.do(self._affair("user"))
        for stream in STREAMS:
            self.do(self._project(stream, steps))

    @rule(count=st.integers(1, 4))
    def submit(self, count: int) -> None:
        self.do(self._submit(count))

    @rule(chosen=st.lists(st.tuples(st.integers(0, 30), st.sampled_from(OUTCOMES)), min_size=1, max_size=4))
    def deliver(self, chosen) -> None:
        """Workers try some messages; what ended or was parked before is sent again."""
        self.do(self._deliver(chosen))

    async def _deliver(self, chosen) -> None:
        facts: list[Fact] = []
        for number, kind in chosen:
            one, cycle, attempt = self.open[number % len(self.open)]
            client = one.event.client_id
            if attempt < 0:
                cycle, attempt = cycle + 1, 0
                facts.append(Fact(one.subject, types.ResendRequested(client, cycle, b"s%d" % cycle), one.at))
            elif attempt:
                facts.append(Fact(one.subject, types.DeliveryDue(client, cycle, attempt + 1), one.at))
            facts += await self._outcome(one, cycle, attempt + 1, kind)
            ended = kind in {"delivered", "failed"}
            self.open[number % len(self.open)] = (one, cycle, -1 if ended else attempt + 1)
        await self._append("0", facts)

    @rule(kind=st.sampled_from(AFFAIRS))
    def affair(self, kind: str) -> None:
        """Something about people or clients, or an access."""
        self.do(self._affair(kind))

    async def _affair(self, kind: str) -> None:
        who = f"u{self.people}"
        if kind in {"user", "client"}:
            self.people += 1
            who = f"u{self.people}"
            facts: list[types.Event] = [
                types.UserCreated(who, f"{who}@b.c", "user", "$2b$", []),
                types.ClientRegistered(who, None),
            ]
        elif kind == "route":
            facts = [
                types.ClientRouteChanged(who, "webhook", f"https://{len(self.history['control'])}.example")
            ]
        elif kind == "disabled":
            facts = [types.UserDisabled(who)]
        elif kind == "role":
            facts = [types.UserRoleChanged(who, "admin")]
        else:
            await self._append("access", [Fact(b"user:x", types.BodyRead("m", "demo"), actor="user:x")])
            return
        await self._append("control", [Fact(b"user:" + who.encode(), each) for each in facts])

    async def _record(self, event: types.Event) -> None:
        await self._append("control", [Fact(b"projection:x", event, actor="user:admin")])

    # -- Projectors ---------------------------------------------------------------------------------------

    async def _owner(self, stream: str, fall: Fall | None = None) -> runner.StreamRunner:
        """A projector that takes the stream over from whoever has it."""
        keys = self.streams[stream]
        await self.redis.hset(keys.lease, mapping={"owner": "", "expires": "0"})
        store = MortalStore(self.place.url) if fall else self.store
        made = readmodels.runner(
            self.redis, keys, self.identity, store, owner=f"p{next(self.owners)}", batch=BATCH, ttl=600.0
        )
        await made._own(NOW)
        assert made.feed.epoch
        if isinstance(store, MortalStore):
            store.fall = fall
        return made

    async def _project(self, stream: str, steps: int, fall: Fall | None = None) -> None:
        """So many batches of a stream; what a projector would get over, it gets over by beginning again."""
        if fall or stream not in self.runners:
            self.runners[stream] = await self._owner(stream, fall)
        projector = self.runners[stream]
        whole = False
        try:
            for _ in range(steps):
                await projector._step()
            whole = True
        except LeaseLost:
            # A rebuild moved its checkpoint, or holds it.
            pass
        except StoreUnavailable:
            if not (fall or "statistics" in self.damaged):
                raise
        except Killed:
            pass
        finally:
            if not whole or fall:
                self.runners.pop(stream, None)
            if isinstance(store := projector._store, MortalStore):
                self.fallen |= store.fallen
                await store.close()

    @rule(stream=st.sampled_from(MOST), steps=st.integers(1, 6), fall=st.none() | falls)
    def project(self, stream: str, steps: int, fall: Fall | None) -> None:
        """Some batches; at `fall` it is killed or cut off from the database, and another one goes on."""
        self.do(self._project(stream, steps, fall))

    @rule(stream=st.sampled_from(MOST), steps=st.integers(1, 3))
    def overtaken(self, stream: str, steps: int) -> None:
        """A projector sleeps between reading and committing; meanwhile another one goes on."""
        self.do(self._overtaken(stream, steps))

    async def _overtaken(self, stream: str, steps: int) -> None:
        sleeper = await self._owner(stream)
        self.runners.pop(stream, None)
        read = sleeper.feed.read

        async def slowly(*args):
            page = await read(*args)
            await self._project(stream, steps)
            return page

        sleeper.feed.read = slowly
        try:
            await sleeper._step()
        except LeaseLost:
            pass
        except StoreUnavailable:
            if "statistics" not in self.damaged:
                raise

    # -- Archive ------------------------------------------------------------------------------------------

    async def _archive(self, stream: str, pages: int, fall: int | None = None, after: bool = False) -> None:
        """Some pages are read and sealed, each a segment; then everything is cut that nobody needs."""
        keys = self.streams[stream]
        made = self.archivers.pop(stream, None)
        if fall is not None or made is None:
            await self.redis.hset(keys.archive_lease, mapping={"owner": "", "expires": "0"})
            limits = Limits(size=1, seconds=3600.0, poll=0.0, page=3)
            made = archives.archiver(
                self.redis, keys, self.where, owner=f"a{next(self.owners)}", ttl=600.0, limits=limits
            )
            made.archive = StreamArchive(
                MortalStorage(self.where, fall, after=after), self.identity.log_id, stream
            )
        try:
            if not made.owning:
                await made._own(NOW)
            for _ in range(pages):
                await made._step(NOW)
            await self._trim(made)
        except Killed:
            return
        self.archivers[stream] = made

    async def _trim(self, archiver) -> None:
        keys = archiver.feed.keys
        if keys.stream == "0":
            # Workers have handled everything.
            try:
                await self.redis.xgroup_setid(keys.events, "delivery", "$")
            except ResponseError:
                await self.redis.xgroup_create(keys.events, "delivery", "$")
        await Trimmer([archiver], self.needing.needs, lambda: 0).round()

    @rule(
        stream=st.sampled_from(MOST),
        pages=st.integers(1, 5),
        fall=st.none() | st.integers(0, 5),
        after=st.booleans(),
    )
    def archive(self, stream: str, pages: int, fall: int | None, after: bool) -> None:
        """Killed before or after the file number `fall` that it puts."""
        self.do(self._archive(stream, pages, fall, after))

    # -- Rebuilds -----------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES))
    def damage(self, name: str) -> None:
        """Somebody's hand in the tables."""
        if name not in self.damaged:
            self.damaged.add(name)
            self.do(self.store.execute(DAMAGE[name]))

    @rule(
        name=st.sampled_from(OFTEN),
        meanwhile=st.lists(st.sampled_from(MEANWHILE), max_size=6),
        lives=st.lists(deaths, max_size=2),
    )
    def rebuild(self, name: str, meanwhile, lives) -> None:
        """To the end, however often it is killed on the way; around it, life goes on."""
        self.do(self._rebuild(name, meanwhile, [*lives, None]))

    @rule(
        name=st.sampled_from(OFTEN),
        meanwhile=st.lists(st.sampled_from(MEANWHILE), max_size=4),
        fall=falls,
    )
    def rebuild_falls(self, name: str, meanwhile, fall: Fall) -> None:
        """What a killed one leaves is gone on with, cancelled, or settled by who finds it."""
        self.do(self._rebuild(name, meanwhile, [fall]))

    async def _rebuild(self, name: str, meanwhile, lives) -> None:
        plan = iter(meanwhile)
        self.cancelled = False
        for fall in lives:
            if await self._life(name, plan, fall):
                return

    async def _life(self, name: str, plan, fall: Fall | None) -> bool:
        """One process that rebuilds; whether that came to an end."""
        store = MortalStore(self.place.url, fall)
        others: list[asyncio.Task] = []
        one_at_a_time = asyncio.Lock()

        async def other() -> None:
            async with one_at_a_time:
                await self._meanwhile(name, next(plan, ""))

        async def happen() -> None:
            # It belongs to other processes: the end of this one does not end it.
            others.append(asyncio.create_task(other()))
            await asyncio.shield(others[-1])

        once = rebuilds.rebuild(
            store, InterruptedSource(self.source, happen), name, batch=BATCH, record=self.record
        )
        ended = False
        try:
            result = await once.run()
            assert result.outcome == "switched"
            self.damaged.discard(name)
            ended = True
        except RebuildCancelled:
            assert self.cancelled
            ended = True
        except StoreUnavailable:
            # Cut off before anything was begun.
            assert store.fallen
        except (Killed, BaseExceptionGroup):
            if not store.dead:
                raise
        finally:
            self.fallen |= store.fallen
            await asyncio.gather(*others)
            await store.close()
            await wait_until(lambda: self._free(name))
        return ended

    async def _free(self, name: str) -> bool:
        """The database has noticed that whoever rebuilt is gone."""
        return not await progress.locked(self.store, name)

    async def _meanwhile(self, name: str, what: str) -> None:
        match what:
            case "submit":
                await self._submit(3)
            case "affair":
                await self._affair("client")
            case "project":
                for stream in STREAMS:
                    await self._project(stream, 2)
            case "archive":
                await self._archive("0", 5)
            case "cancel":
                self.cancelled = True
                await progress.ask_to_cancel(self.store, name)

    @rule(name=st.sampled_from(OFTEN))
    def cancel(self, name: str) -> None:
        self.do(run.cancel(self.store, PROJECTIONS[name], self._record))

    # -- What must hold -----------------------------------------------------------------------------------

    @invariant()
    def tables_are_as_far_as_they_say(self) -> None:
        """Each table is the fold of the history up to its checkpoints, but where somebody's hand was."""
        self.do(self._check())

    async def _check(self) -> None:
        found = await self.store.select("SELECT * FROM checkpoints")
        for name in set(NAMES) - self.damaged:
            rows = [row for row in found if row["projection"] == name]
            # Between its RENAME and its checkpoints a killed rebuild leaves the projection held.
            if not any(row["held"] for row in rows):
                await self._compare(name, rows)

    async def _compare(self, name: str, rows) -> None:
        taken: dict[str, list[folding.Placed]] = {}
        for row in rows:
            stream, at = row["stream"], (row["ms"], row["seq"])
            taken[stream] = [each for each in self.history[stream] if each[0][1:] <= at]
            assert (row["halted"], row["events"]) == (None, len(taken[stream])), f"{name} on {stream}"
        for table in PROJECTIONS[name].tables:
            key = readmodels.TABLES[table].split(",")
            expected = sorted(folding.TABLES[table](taken), key=lambda row: [row[each] for each in key])
            there = await self.store.select(f"SELECT * FROM {table} ORDER BY {','.join(key)}")
            assert there == expected, table

    async def _end(self) -> None:
        """Whatever is damaged is rebuilt, whatever was begun is ended: everything is projected, nothing is left over."""
        for name in sorted(self.damaged):
            await self._rebuild(name, [], [None])
        for name in {part.projection for part in await progress.load(self.store)}:
            await run.cancel(self.store, PROJECTIONS[name])
        for stream, placed in self.history.items():
            await self._project(stream, len(placed) + 2)
            await self._project(stream, len(placed) + 2)
        await self._check()
        for row in await self.store.select("SELECT * FROM checkpoints"):
            assert not row["held"]
            assert row["events"] == len(self.history[row["stream"]]), row["projection"]
        # Whatever was killed: the next projector that starts removes the tables that it left.
        self.runners.clear()
        await self._owner("control")
        assert not await self.store.select("SHOW TABLES LIKE '%\\_\\_%'")


@pytest.fixture(scope="module")
def place(valkey, mariadb):
    """A server each for all machines of this file."""
    url = databases.create(mariadb)
    schema.migrate(url)
    made = Place(valkey.url, url)
    yield made
    made.close()
    databases.drop(url)


@pytest.fixture
def machine(place, monkeypatch):
    """The machine, in a world without waiting."""
    monkeypatch.setattr(runner, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(run, "backoff", lambda *_: itertools.repeat(0.0))

    class Machine(Model):
        pass

    Machine.place = place
    return Machine


@pytest.fixture
def model(machine):
    """One of the machines, to be driven by hand, with everything checked at its end."""
    made = machine()
    made.begin(6, 9)
    yield made
    made.teardown()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", ["dies", "cut off"])
def test_at_every_statement_of_a_projector(model, when, what):
    """Killed or cut off at each in turn, before it is sent or when it is answered: rows and checkpoint agree."""
    for word in range(100):
        model.submit(1)
        model.deliver([(-1, "delivered"), (word, "retried")])
        model.fallen = False
        model.project("0", 1, Fall(word, when, what))
        model.tables_are_as_far_as_they_say()
        if not model.fallen:
            break
    assert len(PROJECTIONS) < word < 90


@pytest.mark.parametrize("name", ["audit_log", "statistics"])
def test_at_every_statement_of_a_rebuild(model, name):
    """Killed at each in turn and gone on with, while the stream is cut: the tables are right, and nothing is held."""
    # On record, each rebuild would make the next one longer.
    model.record = None
    model.project("0", 20, None)
    model.archive("0", 2, None, after=False)
    for word in range(0, 300, examples(2, 1)):
        model.fallen = False
        model.rebuild(name, ["archive"], [Fall(word)])
        model.tables_are_as_far_as_they_say()
        if not model.fallen:
            break
        model.project("0", 1, None)
    assert 20 < word < 290


@pytest.mark.parametrize("steps", [0, 9])
def test_at_every_statement_of_a_switch(machine, steps):
    """Killed from the RENAME on, and settled by projectors that go on: nothing is counted twice, nothing held."""
    for word in range(-1, 6):
        fall = Fall(word, "after", since="RENAME TABLE") if word >= 0 else Fall(0, "before", since="RENAME")
        one = machine()
        one.begin(4, steps)
        one.rebuild_falls("statistics", [], fall)
        one.submit(2)
        for _ in range(2):
            one.project("0", 20, None)
        one.tables_are_as_far_as_they_say()
        one.teardown()


def test_everything_happens_during_a_rebuild(model):
    """Events, cuts and projectors that go on between any two reads of a rebuild: none of it is lost."""
    for place, name in itertools.product(range(6), ("messages", "audit_log")):
        model.damage(name)
        model.submit(3)
        model.project("0", 20, None)
        model.submit(2)
        happens = ["archive", "submit", "project", "project", "archive", "project"]
        model.rebuild(name, [*[""] * place, *happens], [])
        assert name not in model.damaged
        model.project("0", 20, None)
        model.tables_are_as_far_as_they_say()


def test_a_sleeper_that_was_overtaken_writes_nothing(model):
    """What it had read when another projector went past it counts once."""
    for stream in ("0", "control", "0"):
        model.submit(3)
        model.affair("client")
        model.overtaken(stream, 2)
        model.tables_are_as_far_as_they_say()


def test_any_order_leaves_the_tables_that_the_history_says(machine):
    """Killed and overtaken projectors, archivers and rebuilds, cuts and damage: no table ever says what history does not."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples(30, 100),
            stateful_step_count=examples(25, 40),
            deadline=None,
            # Making a history shorter takes longer than a test may; few steps are read as they are.
            phases=(Phase.reuse, Phase.generate),
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
