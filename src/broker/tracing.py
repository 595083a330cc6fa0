"""Spans of each message for an OpenTelemetry collector (OTLP over HTTP, as JSON); nothing where none is set.

A message's id is its trace's id, and a span's id follows from the message and from what the span is of. So
every process knows the others' spans without being told, and nothing has to travel with the events
(docs/decisions/0023).
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

import msgspec

from broker import __version__, telemetry

SUBMIT: Final = "submit"
"""The key of the span that is every other's ancestor."""
LIMIT: Final = 20_000
"""Spans that wait for the collector; more are dropped."""
BATCH: Final = 512
PAUSE_SECONDS: Final = 1.0
MAX_PAUSE_SECONDS: Final = 30.0
TIMEOUT_SECONDS: Final = 5.0
FLUSH_SECONDS: Final = 3.0
# OTLP 1.9, "Retryable response codes".
_LATER: Final = frozenset({429, 502, 503, 504})
_KINDS: Final = {"internal": 1, "server": 2, "client": 3, "producer": 4, "consumer": 5}
_TRACEPARENT: Final = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Value = str | int | bool | None

log = telemetry.get_logger(__name__)


class Link(NamedTuple):
    """A span of somebody else's trace, in hex."""

    trace: str
    span: str


class Span(NamedTuple):
    """One step of a message. Times in nanoseconds since the epoch; `failed` says how, if it did."""

    message_id: bytes
    name: str
    key: str
    parent: str | None
    kind: Kind
    start: int
    end: int
    attributes: dict[str, Value]
    failed: str | None = None
    link: Link | None = None


class Tracer:
    """Takes spans of a share of all messages and has them sent."""

    def __init__(self, ratio: float, exporter: Exporter) -> None:
        self._bound = round(ratio * (1 << 48))
        self.exporter = exporter

    def wants(self, message_id: bytes) -> bool:
        """Whether spans of this message are kept: by its random bits, so that all processes agree."""
        return int.from_bytes(message_id[9:15], "big") < self._bound

    def take(self, span: Span) -> None:
        """Keep the span if it is wanted."""
        if self.wants(span.message_id):
            self.exporter.put(span)


active: Tracer | None = None
"""None where no collector is set: whoever records spans looks here first."""


def now() -> int:
    """Nanoseconds since the epoch where spans are recorded, else 0."""
    return 0 if active is None else time.time_ns()


def ago(seconds: float) -> int:
    """The time so many seconds ago, in nanoseconds since the epoch."""
    return time.time_ns() - int(seconds * 1e9)


def record(
    message_id: bytes,
    name: str,
    start: int,
    *,
    key: str,
    parent: str | None = SUBMIT,
    kind: Kind = "internal",
    failed: str | None = None,
    link: Link | None = None,
    **attributes: Value,
) -> None:
    """A span that began at `start` (0: nothing is recorded) and ends now; `parent` is another span's key."""
    if active is not None and start:
        active.take(
            Span(message_id, name, key, parent, kind, start, time.time_ns(), attributes, failed, link)
        )


def span_id(message_id: bytes, key: str) -> str:
    """Eight bytes in hex that every process finds alike."""
    return hashlib.blake2b(message_id + key.encode(), digest_size=8).hexdigest()


def attempt(cycle: int, number: int) -> str:
    """The key of the span of one attempt."""
    return f"attempt {cycle}.{number}"


def given(traceparent: bytes | None) -> Link | None:
    """The caller's span, from a header as of https://www.w3.org/TR/trace-context/, if it is one."""
    found = None if traceparent is None else _TRACEPARENT.fullmatch(traceparent)
    if found is None or not found[1].strip(b"0") or not found[2].strip(b"0"):
        return None
    return Link(found[1].decode(), found[2].decode())


def start(role: str, url: str, ratio: float, counted: Callable[[str, int], None]) -> None:
    """Send spans of this share of all messages to the collector at `url`.

    `counted` is told how many were `sent` and `dropped`.
    """
    global active
    active = Tracer(ratio, Exporter(f"{url.rstrip('/')}/v1/traces", role, counted))
    active.exporter.start()


def stop() -> None:
    """Send what is left, if the collector takes it soon."""
    global active
    if active is not None:
        tracer, active = active, None
        tracer.exporter.close()


class Exporter(threading.Thread):
    """Sends spans in batches from its own thread; keeps them while the collector is away, up to a limit."""

    def __init__(self, url: str, role: str, counted: Callable[[str, int], None]) -> None:
        super().__init__(name="traces", daemon=True)
        self._url = url
        self._counted = counted
        self._waiting: deque[Span] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._well = True
        self._resource = _resource(role)

    def put(self, span: Span) -> None:
        """Have it sent; dropped where too many wait already."""
        if len(self._waiting) >= LIMIT:
            self._counted("dropped", 1)
            return
        self._waiting.append(span)
        if len(self._waiting) >= BATCH:
            self._wake.set()

    def close(self) -> None:
        """Try once more to send what waits, for a moment."""
        self._closing = True
        self._wake.set()
        self.join(FLUSH_SECONDS)

    def run(self) -> None:
        """Send until closed."""
        import httpx

        pause = PAUSE_SECONDS
        # Nothing of this machine's proxy settings: a collector is near.
        with httpx.Client(timeout=TIMEOUT_SECONDS, trust_env=False) as http:
            while True:
                self._wake.wait(pause)
                self._wake.clear()
                last = self._closing
                well = True
                while well and self._waiting:
                    well = self._send(http)
                if last:
                    if self._waiting:
                        self._counted("dropped", len(self._waiting))
                    return
                pause = PAUSE_SECONDS if well else min(pause * 2, MAX_PAUSE_SECONDS)

    def _send(self, http: Any) -> bool:
        """Send one batch; False where it has to wait."""
        batch = [self._waiting[index] for index in range(min(BATCH, len(self._waiting)))]
        body = msgspec.json.encode(document(self._resource, batch))
        try:
            answer = http.post(self._url, content=body, headers={"content-type": "application/json"})
        except Exception as error:  # noqa: BLE001 - whatever it is, the broker goes on
            self._say(f"{type(error).__name__}: {error}")
            return False
        if answer.status_code in _LATER:
            self._say(f"status {answer.status_code}")
            return False
        for _ in batch:
            self._waiting.popleft()
        if answer.is_success:
            self._counted("sent", len(batch))
            self._say(None)
        else:
            self._counted("dropped", len(batch))
            self._say(f"status {answer.status_code}")
        return True

    def _say(self, reason: str | None) -> None:
        """A line where it begins and where it ends that spans are not taken."""
        if self._well and reason is not None:
            log.warning("traces_not_taken", url=self._url, reason=reason)
        elif not self._well and reason is None:
            log.info("traces_taken_again", url=self._url)
        self._well = reason is None


def _resource(role: str) -> dict[str, Any]:
    names: dict[str, Value] = {
        "service.name": f"broker-{role}",
        "service.namespace": "broker",
        "service.version": __version__,
        "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
    }
    return {"attributes": _attributes(names)}


def document(resource: dict[str, Any], spans: list[Span]) -> dict[str, Any]:
    """The body of an export request: OTLP's JSON form of `ExportTraceServiceRequest`."""
    scope = {"name": "broker", "version": __version__}
    return {
        "resourceSpans": [
            {"resource": resource, "scopeSpans": [{"scope": scope, "spans": [_span(one) for one in spans]}]}
        ]
    }


def _span(span: Span) -> dict[str, Any]:
    message_id = span.message_id
    found: dict[str, Any] = {
        "traceId": message_id.hex(),
        "spanId": span_id(message_id, span.key),
        "name": span.name,
        "kind": _KINDS[span.kind],
        "startTimeUnixNano": str(span.start),
        "endTimeUnixNano": str(span.end),
        "attributes": _attributes(span.attributes),
    }
    if span.parent is not None:
        found["parentSpanId"] = span_id(message_id, span.parent)
    if span.failed is not None:
        found["status"] = {"code": 2, "message": span.failed}
    if span.link is not None:
        found["links"] = [{"traceId": span.link.trace, "spanId": span.link.span}]
    return found


def _attributes(values: dict[str, Value]) -> list[dict[str, Any]]:
    found = []
    for name, value in values.items():
        if value is not None:
            key = name if "." in name else f"broker.{name}"
            found.append({"key": key, "value": _value(value)})
    return found


def _value(value: str | int) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        # 64-bit integers are strings in Protobuf's JSON form.
        return {"intValue": str(value)}
    return {"stringValue": value}
