"""Folds against a reference in plain Python: random histories, cut anywhere, applied twice, crashed between."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from itertools import pairwise
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.domain import ids
from broker.events import types
from broker.events.feed import Feed
from broker.events.keys import PartitionKeys
from broker.events.positions import Position, start
from broker.projections import catalog, checkpoints, statistics
from broker.projections.committing import Committer
from broker.projections.status import StreamStatus
from broker.projections.store import Store
from support import databases, histories, readmodels
from support.examples import examples
from support.histories import START_MS, Fact

REASONS = st.sampled_from(["refused", "it's \\ gone", "ünlucky 😀", "", "x" * 600])


@st.composite
def message(draw: st.DrawFn) -> list[Fact]:
    """What may happen to one message, in order."""
    client = draw(st.sampled_from(["demo", "acme"]))
    at = START_MS + draw(st.integers(0, 3 * 3_600_000))
    first = histories.submitted(client=client, at=at, domain=draw(st.none() | st.just("d.example")))
    facts = [first]

    def add(event: types.Event) -> None:
        facts.append(Fact(first.subject, event, at + len(facts) * 7))

    for cycle in range(1, draw(st.integers(1, 3)) + 1):
        if cycle > 1:
            add(types.ResendRequested(client, cycle, b"\x00again%d" % cycle, draw(st.none() | REASONS)))
        tries = draw(st.integers(0, 3))
        for attempt in range(1, tries + 1):
            code, error = draw(st.none() | st.integers(200, 599)), draw(st.none() | REASONS)
            ok = attempt == tries and draw(st.booleans())
            add(types.DeliveryAttempted(client, cycle, attempt, "webhook", ok, 5, code, error))
            if ok:
                add(types.Delivered(client, cycle, attempt))
                break
            end = draw(st.sampled_from(["retry", "retry", "fail", "park", "stop"]))
            if end == "retry":
                add(types.RetryScheduled(client, cycle, attempt, 30_000))
                if draw(st.booleans()):
                    add(types.DeliveryDue(client, cycle, attempt + 1))
            elif end == "fail":
                add(types.Failed(client, cycle, attempt, draw(REASONS)))
                break
            elif end == "park":
                add(types.MessageParked(client, cycle, attempt, draw(REASONS)))
                if draw(st.booleans()):
                    add(types.MessageDiscarded(client, cycle, attempt, draw(REASONS)))
                break
    return facts


@st.composite
def history(draw: st.DrawFn) -> list[tuple[Fact, Position]]:
    """Several messages' events, interleaved, each in its own order, at growing positions."""
    queues = [list(one) for one in draw(st.lists(message(), min_size=1, max_size=8))]
    merged: list[Fact] = []
    while queues:
        queue = queues[draw(st.integers(0, len(queues) - 1))]
        merged.append(queue.pop(0))
        queues = [each for each in queues if each]
    ms, seq, placed = START_MS, 0, []
    for fact in merged:
        step = draw(st.sampled_from([0, 0, 1, 900_000]))
        ms, seq = (ms + step, 0) if step else (ms, seq + 1)
        placed.append((fact, Position("0", ms, seq)))
    return placed


def clipped(text: str | None) -> str | None:
    return text if text is None or len(text) <= 500 else text[:499] + "…"


def moment(ms: int | None) -> dt.datetime | None:
    return None if ms is None else dt.datetime(1970, 1, 1) + dt.timedelta(milliseconds=ms)  # noqa: DTZ001


def reference(placed: list[tuple[Fact, Position]]) -> dict[str, Any]:  # noqa: C901  plain on purpose
    """The same tables, one event after the other, the slow and obvious way."""
    messages: dict[str, dict[str, Any]] = {}
    attempts, counters, latencies = [], Counter(), Counter()
    for fact, position in placed:
        event, key = fact.event, ids.text(fact.subject)
        hour = moment(position.ms // 3_600_000 * 3_600_000)
        row = messages.get(key)
        names = [type(event).__name__]
        match event:
            case types.MessageSubmitted():
                row = messages[key] = {
                    "client_id": event.client_id, "encrypted_body": event.sealed, "status": "queued",
                    "sender_number_hashed": event.number_hash.hex(), "parked": 0, "reason": None, "cycle": 1,
                    "attempt_count": 0, "queued_at": moment(fact.at), "delivered_at": None, "failed_at": None,
                    "next_attempt_at": None, "last_error": None, "last_code": None, "domain": event.domain,
                    "submitted_ms": position.ms, "submitted_seq": position.seq,
                }  # fmt: skip
            case types.DeliveryAttempted():
                row |= {
                    "attempt_count": event.attempt,
                    "last_code": event.code,
                    "last_error": clipped(event.error),
                }
                attempts.append((key, event.cycle, event.attempt, event.succeeded, clipped(event.error)))
                if not event.succeeded:
                    names.append("failed_attempts")
            case types.Delivered():
                row |= {"status": "delivered", "parked": 0, "reason": None, "delivered_at": moment(fact.at)}
                row["next_attempt_at"] = None
                if event.cycle == 1:
                    latencies[hour, statistics.bucket(fact.at - ids.created_ms(fact.subject))] += 1
            case types.Failed() | types.MessageDiscarded():
                row |= {"status": "failed", "parked": 0, "reason": clipped(event.reason)}
                row |= {"failed_at": moment(fact.at), "next_attempt_at": None}
            case types.RetryScheduled():
                row["next_attempt_at"] = moment(position.ms + event.delay_ms)
            case types.DeliveryDue():
                row |= {"parked": 0, "reason": None, "next_attempt_at": None}
            case types.MessageParked():
                row |= {"parked": 1, "reason": clipped(event.reason), "next_attempt_at": None}
            case types.ResendRequested():
                row |= {
                    "status": "queued",
                    "parked": 0,
                    "reason": None,
                    "cycle": event.cycle,
                    "attempt_count": 0,
                }
                row |= {"delivered_at": None, "failed_at": None, "next_attempt_at": None}
                row["encrypted_body"] = event.sealed
        row |= {"changed_ms": position.ms, "changed_seq": position.seq}
        for name in names:
            counters[hour, event.client_id, name] += 1
    return {"messages": messages, "attempts": attempts, "counters": counters, "latencies": latencies}


COLUMNS = {
    "MessageSubmitted": "submitted",
    "DeliveryAttempted": "attempts",
    "failed_attempts": "failed_attempts",
    "RetryScheduled": "retries",
    "Delivered": "delivered",
    "Failed": "failed",
    "MessageDiscarded": "discarded",
    "MessageParked": "parked",
    "ResendRequested": "resent",
}


def committer(store: Store) -> Committer:
    feed = Feed(None, PartitionKeys("none", 0), "inc", "p1", 5)
    projections = {each.name: each for each in catalog.projections() if each.wants("0")}
    return Committer(feed, store, projections, StreamStatus("0"))


async def load(one: Committer, store: Store) -> None:
    one.at = await checkpoints.load(store, "0", list(one._projections), "inc")


async def apply(store: Store, placed, cuts: list[int], back: list[int]) -> None:
    """Apply in batches cut at `cuts`; before some, forget everything and go back a few events, as after a crash."""
    one = committer(store)
    await load(one, store)
    entries = readmodels.items([fact for fact, _ in placed], [at for _, at in placed])
    edges = sorted({0, len(entries), *(cut % (len(entries) + 1) for cut in cuts)})
    for number, (left, right) in enumerate(pairwise(edges)):
        begin = left
        if back and back[number % len(back)]:
            one = committer(store)
            await load(one, store)
            begin = max(0, left - back[number % len(back)])
        after = entries[begin - 1].position if begin else start("0")
        await one.commit(entries[begin:right], after)
    assert all(at.halted is None for at in one.at.values())


@settings(max_examples=examples(25, 60), deadline=None, suppress_health_check=list(HealthCheck))
@given(history(), st.lists(st.integers(0, 200), max_size=6), st.lists(st.integers(0, 9), max_size=4))
async def test_random_histories(session_url, placed, cuts, back):
    """However a history is cut into batches, and whatever is applied twice, the tables equal the reference."""
    databases.clear(session_url)
    store = Store(session_url)
    try:
        await apply(store, placed, cuts, back)
        await compare(store, placed)
    finally:
        await store.close()


async def compare(store: Store, placed) -> None:
    expected = reference(placed)
    found = await readmodels.tables(store)
    for row in found["messages"]:
        wanted = expected["messages"].pop(row["message_id"])
        assert {name: row[name] for name in wanted} == wanted
    assert not expected["messages"]
    attempts = [
        (row["message_id"], row["cycle"], row["attempt"], bool(row["succeeded"]), row["error"])
        for row in sorted(found["attempts"], key=lambda row: (row["ms"], row["seq"]))
    ]
    assert attempts == expected["attempts"]
    counters = Counter(
        {
            (row["hour"], row["client_id"], name): row[column]
            for row in found["statistics"]
            for name, column in COLUMNS.items()
        }
    )
    assert +counters == Counter({key: n for key, n in expected["counters"].items() if key[2] in COLUMNS})
    latencies = Counter({(row["hour"], row["bucket"]): row["messages"] for row in found["latencies"]})
    assert latencies == expected["latencies"]
    assert [(row["ms"], row["seq"]) for row in found["audit_log"]] == [(at.ms, at.seq) for _, at in placed]
    assert all(row["events"] == len(placed) for row in found["checkpoints"])


def test_percentiles():
    """A percentile is the upper bound of the bucket that holds it."""
    assert statistics.percentile({}, 0.5) is None
    buckets = Counter(statistics.bucket(ms) for ms in range(1, 1001))
    for share in (0.5, 0.95, 0.99):
        exact = share * 1000
        assert exact <= statistics.percentile(buckets, share) <= exact * 1.2
    assert statistics.percentile({len(statistics.BOUNDS_MS): 1}, 0.5) == statistics.BOUNDS_MS[-1]
    assert statistics.bucket(-5) == 0
