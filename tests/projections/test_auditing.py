"""Reads of the audit log: against a reference filter, by index, bounded."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.errors import ValidationError
from broker.events import chain, exported, types
from broker.projections import auditing
from broker.projections.auditing import Cursor, Filter
from support import histories, log
from support.examples import examples
from support.readmodels import reached, runner, running
from support.waiting import wait_until

START = histories.START_MS
USER = "user:u1"


def facts(partition: int, count: int, seed: int) -> list[histories.Fact]:
    """Messages of three clients with few different times, some of which failed."""
    rng = random.Random(seed)
    found: list[histories.Fact] = []
    for number in range(count):
        client = rng.choice(("acme", "demo", "globex"))
        one = histories.submitted(partition, client, START + rng.randrange(10) * 100)
        found.append(one)
        found.append(histories.attempted(one, ok=bool(number % 3)))
        if number % 3:
            found.append(histories.delivered(one))
        else:
            gave_up = types.Failed(client, 1, 1, "no")
            found.append(histories.Fact(one.subject, gave_up, one.at + 10, f"worker:w{number % 2}"))
    return found


@pytest.fixture
async def events(redis, log_name, store):
    """Events of two partitions and the control stream, as (position, fact)."""
    keys, identity = await log.create(redis, log_name)
    by_stream = {
        keys.partitions[0]: facts(0, 30, 1),
        keys.partitions[1]: facts(1, 20, 2),
        keys.control: [
            histories.Fact(b"client:demo", types.ClientRegistered("demo"), START + 100, USER, "abc"),
            histories.Fact(b"user:u2", types.UserRoleChanged("u2", "admin"), START + 300, USER, None),
        ],
    }
    found = []
    for stream, some in by_stream.items():
        positions = await histories.append(redis, stream, some)
        found += zip(positions, some, strict=True)
        async with running(runner(redis, stream, identity, store)):
            await wait_until(lambda last=positions[-1]: reached(store, last, ["audit_log"]))
    return found


def expected(events, wanted: Filter) -> list[str]:
    """The ids of the events that the filter should find, in order."""

    def matches(position, fact) -> bool:
        subject = exported.subject_text(fact.stored(position))
        return all(
            (
                wanted.since is None or fact.at >= wanted.since,
                wanted.until is None or fact.at < wanted.until,
                wanted.types is None or type(fact.event).__name__ in wanted.types,
                wanted.subject in (None, subject),
                wanted.actor in (None, fact.actor),
                wanted.client_id in (None, getattr(fact.event, "client_id", None)),
                wanted.correlation_id in (None, fact.correlation_id),
            )
        )

    found = [(fact.at, *position) for position, fact in events if matches(position, fact)]
    return [f"{stream}:{ms}-{seq}" for _, stream, ms, seq in sorted(found, reverse=True)]


async def walk(store, wanted: Filter, limit: int) -> list[auditing.Page]:
    pages = [await auditing.page(store, wanted, limit=limit)]
    while (following := pages[-1].next) is not None:
        pages.append(await auditing.page(store, wanted, limit=limit, after=auditing.cursor(following.text())))
    return pages


def ids_of(pages) -> list[str]:
    return [line.id for page in pages for line in page.events]


times = st.none() | st.integers(START - 50, START + 1_050)
names = st.sampled_from(["MessageSubmitted", "Failed", "ClientRegistered", "UserDisabled"])


@st.composite
def filters(draw: st.DrawFn, events: list) -> Filter:
    subjects = [exported.subject_text(fact.stored(position)) for position, fact in events]
    return Filter(
        draw(times),
        draw(times),
        draw(st.none() | st.lists(names, max_size=2, unique=True).map(tuple)),
        draw(st.none() | st.none() | st.sampled_from([*subjects, "client:nobody"])),
        draw(st.none() | st.sampled_from(["worker:w1", "client:demo", USER, "x"])),
        draw(st.none() | st.sampled_from(["demo", "acme", "nobody"])),
        draw(st.none() | st.sampled_from(["abc", "c0ffee" + "0" * 26])),
    )


@pytest.mark.parametrize("scan", [10_000, 17])
async def test_as_the_reference(store, events, monkeypatch, scan):
    """Any filter finds what a plain loop finds, however little one request may look at."""
    monkeypatch.setattr(auditing, "SCAN", scan)
    drawn: list[tuple[Filter, int]] = []

    @settings(max_examples=examples(25, 80), suppress_health_check=list(HealthCheck), database=None)
    @given(st.just(events).flatmap(filters), st.sampled_from((5, 40, 500)))
    def draw(wanted: Filter, limit: int) -> None:
        drawn.append((wanted, limit))

    draw()
    for wanted, limit in [(Filter(), 7), *drawn]:
        pages = await walk(store, wanted, limit)
        assert ids_of(pages) == expected(events, wanted)
        assert all(len(page.events) <= limit for page in pages)


async def test_exported_form(store, events):
    """Events come as an export has them: withheld where they must be, with hashes that chain."""
    (found,) = await walk(store, Filter(), 500)
    lines = sorted((line for line in found.events if line.stream == "0"), key=lambda line: line.id)
    assert len(found.events) == len(events)
    submitted = next(line for line in lines if line.type == "MessageSubmitted")
    assert set(submitted.data["sealed"]) == {"withheld"}
    by_hash = {line.hash: line for line in lines}
    first = [line for line in lines if line.previous_hash == chain.GENESIS.hex()]
    assert len(first) == 1
    assert sum(line.previous_hash in by_hash for line in lines) == len(lines) - 1


async def test_by_index(store, events):
    """Subject, client and time are read by their indexes; what is sifted is bounded before."""
    await store.select("ANALYZE TABLE audit_log")
    after, until = Cursor(START + 500, "0", 1, 0), Cursor(START + 100, "1", 1, 0)
    for wanted, key in (
        (Filter(), "at"),
        (Filter(START, START + 400), "at"),
        (Filter(types=("Failed",), actor=USER, correlation_id="abc"), "at"),
        (Filter(client_id="demo"), "client_at"),
        (Filter(START, client_id="demo", types=("Failed",)), "client_at"),
        (Filter(subject="client:demo"), "subject"),
        (Filter(subject="client:demo", client_id="demo"), "subject"),
    ):
        sifted = wanted.types is not None or (wanted.subject is not None and wanted.client_id is not None)
        for at, last in ((None, None), (after, None), (None, until), (after, until)):
            statement, args = auditing.page_query(wanted, at, 51, last if sifted else None)
            plan = await store.select(f"EXPLAIN {statement}", args)
            reads = [row for row in plan if row["table"] == "audit_log"]
            assert [row["key"] for row in reads] == [key]
            if key != "subject":
                assert sifted or "Using index" in reads[0]["Extra"]
                assert "filesort" not in reads[0]["Extra"]
            assert [row["type"] for row in plan if row["table"] == "a"] in ([], ["eq_ref"])


@pytest.mark.parametrize("value", ["", "x", "~~~~", "AAAA", "wA", "é"])
def test_foreign_cursors(value):
    """What no page handed out is refused."""
    with pytest.raises(ValidationError, match="cursor"):
        auditing.cursor(value)


def test_unknown_types():
    """A type that there is not would find nothing for ever; it is refused."""
    assert auditing.known_types(["Failed"]) == ("Failed",)
    with pytest.raises(ValidationError, match="type"):
        auditing.known_types(["Failed", "Faild"])
