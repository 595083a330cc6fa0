"""Traces: how spans hang together, which messages are traced, and what a collector that is away costs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from broker import tracing
from broker.domain import ids
from broker.embedded.valkey import free_port
from support.collector import Collector, collecting, plain
from support.waiting import wait_until

MESSAGE = ids.new(3)


@pytest.fixture
def counts() -> Counter[str]:
    return Counter()


@pytest.fixture
def collector(counts: Counter[str], monkeypatch) -> Iterator[Collector]:
    """A collector, and this process sending to it, with pauses of a moment."""
    monkeypatch.setattr(tracing, "PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(tracing, "MAX_PAUSE_SECONDS", 0.05)
    with collecting() as made:
        tracing.start("worker", f"{made.url}/", 1.0, lambda what, count: counts.update({what: count}))
        yield made
        tracing.stop()


def record(message_id: bytes = MESSAGE, **attributes: tracing.Value) -> None:
    tracing.record(message_id, "deliver", tracing.ago(0.5), key=tracing.attempt(1, 2), **attributes)


async def test_a_span_as_the_collector_gets_it(collector: Collector, counts: Counter[str]) -> None:
    """In OTLP's JSON form: the trace is the message, the parent is known without being told."""
    record(channel="inbox", attempt=2, first=False, code=None)
    await wait_until(lambda: collector.spans, what="it has arrived")
    [span] = collector.spans
    assert collector.paths == {"/v1/traces"}
    assert (span["service"], span["name"], span["kind"]) == ("broker-worker", "deliver", 1)
    assert span["traceId"] == MESSAGE.hex()
    assert span["spanId"] == tracing.span_id(MESSAGE, "attempt 1.2")
    assert span["parentSpanId"] == tracing.span_id(MESSAGE, tracing.SUBMIT)
    assert (len(span["traceId"]), len(span["spanId"])) == (32, 16)
    took = int(span["endTimeUnixNano"]) - int(span["startTimeUnixNano"])
    assert took >= 500_000_000
    assert plain(span["attributes"]) == {
        "broker.channel": "inbox",
        "broker.attempt": "2",
        "broker.first": False,
    }
    assert "status" not in span
    await wait_until(lambda: counts["sent"] == 1)


async def test_a_failed_step_and_a_caller_s_own_trace(collector: Collector) -> None:
    """A status of error with its reason; a link to the span that the caller named, where it named one rightly."""
    named = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    tracing.record(MESSAGE, "a", 1, key="a", failed="refused", link=tracing.given(named))
    await wait_until(lambda: collector.spans)
    [span] = collector.spans
    assert span["status"] == {"code": 2, "message": "refused"}
    assert span["links"] == [{"traceId": "0af7651916cd43dd8448eb211c80319c", "spanId": "b7ad6b7169203331"}]


@pytest.mark.parametrize(
    "header",
    [
        None, b"", b"00", b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01", b"00-" + b"a" * 32 + b"-" + b"0" * 16 + b"-01",
        b"00-" + b"A" * 32 + b"-b7ad6b7169203331-01", b"00-" + b"a" * 32 + b"-b7ad6b7169203331-01-more",
    ],
)  # fmt: skip
def test_a_caller_s_header_that_is_none(header: bytes | None) -> None:
    """What the recommendation does not allow is passed over."""
    assert tracing.given(header) is None


@pytest.mark.parametrize("away", [503, 429, "gone"])
async def test_a_collector_that_is_away(
    collector: Collector, counts: Counter[str], monkeypatch, away: int | str
) -> None:
    """Spans wait and arrive, each once, when it is back."""
    if away == "gone":
        port = free_port()
        monkeypatch.setattr(tracing.active.exporter, "_url", f"http://127.0.0.1:{port}/v1/traces")
    else:
        collector.status = away
    record()
    if away == "gone":
        await wait_until(lambda: not tracing.active.exporter._well, what="it was tried")
        collector = Collector(port)
    else:
        await wait_until(lambda: len(collector.bodies) > 1, what="it was tried twice")
        collector.status = 200
    await wait_until(lambda: counts["sent"] == 1, what="it has arrived")
    assert len(collector.spans) == 1
    assert counts["dropped"] == 0
    if away == "gone":
        collector.close()


async def test_spans_that_a_collector_refuses(collector: Collector, counts: Counter[str]) -> None:
    """They are dropped, and counted: it would refuse them again."""
    collector.status = 400
    record()
    await wait_until(lambda: counts["dropped"] == 1)
    assert len(collector.bodies) == 1
    collector.status = 200
    record()
    await wait_until(lambda: counts["sent"] == 1)


async def test_more_than_may_wait(collector: Collector, counts: Counter[str], monkeypatch) -> None:
    """With a collector away, memory is bounded: what comes then is dropped and counted."""
    monkeypatch.setattr(tracing, "LIMIT", 100)
    collector.status = 503
    for _ in range(150):
        record()
    assert counts["dropped"] == 50
    collector.status = 200
    await wait_until(lambda: counts["sent"] == 100)


def test_what_waits_is_sent_at_the_end(counts: Counter[str]) -> None:
    """A process that stops loses nothing to a collector that is there; spans go in batches."""
    with collecting() as made:
        tracing.start("gateway", made.url, 1.0, lambda what, count: counts.update({what: count}))
        for _ in range(tracing.BATCH + 1):
            record()
        tracing.stop()
        assert len(made.spans) == tracing.BATCH + 1 == counts["sent"]
    assert tracing.active is None


def test_a_share_of_messages_is_the_same_one_everywhere() -> None:
    """Each message is traced as a whole or not at all: its id decides, evenly; 0 is none, 1 is all."""
    exporter = tracing.Exporter("http://127.0.0.1:1", "worker", lambda *_: None)
    messages = [ids.new(number % 4) for number in range(4000)]
    tenth = [tracing.Tracer(0.1, exporter).wants(one) for one in messages]
    assert tenth == [tracing.Tracer(0.1, exporter).wants(one) for one in messages]
    assert 200 < sum(tenth) < 700
    assert all(tracing.Tracer(1, exporter).wants(one) for one in [*messages, b"\xff" * 16])
    assert not any(tracing.Tracer(0, exporter).wants(one) for one in messages)


def test_without_a_collector_nothing_is_done() -> None:
    """No time is asked for, no span made, no thread started, no HTTP client loaded."""
    assert tracing.now() == 0
    record()
    program = (
        "import sys, threading\n"
        "from broker import tracing\n"
        "tracing.record(bytes(16), 'x', tracing.now(), key='x')\n"
        "assert 'httpx' not in sys.modules, 'loaded'\n"
        "assert threading.active_count() == 1\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
