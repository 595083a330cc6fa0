"""What the read models must hold, by a plain fold of the facts that were appended.

Of the broker's own it uses the hash of one event after another and the bounds of latency buckets.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from broker.domain import ids
from broker.events import chain, types
from broker.events.positions import Position
from broker.projections.statistics import BOUNDS_MS
from support.histories import Fact

Placed = tuple[Position, Fact]
Rows = list[dict[str, Any]]
Histories = Mapping[str, Sequence[Placed]]
"""Facts by the name of their stream, in order."""

HOUR_MS = 3_600_000
COUNTERS = {
    types.MessageSubmitted: "submitted",
    types.DeliveryAttempted: "attempts",
    types.RetryScheduled: "retries",
    types.Delivered: "delivered",
    types.Failed: "failed",
    types.MessageDiscarded: "discarded",
    types.MessageParked: "parked",
    types.ResendRequested: "resent",
}


def moment(ms: int) -> datetime:
    """As the database gives a time."""
    return datetime(1970, 1, 1) + timedelta(milliseconds=ms)  # noqa: DTZ001


def messages(history: Histories) -> Rows:
    """One row a message: what its last events say."""
    found: dict[bytes, dict[str, Any]] = {}
    for stream, placed in history.items():
        for position, fact in placed:
            if isinstance(fact.event, types.MessageSubmitted):
                found[fact.subject] = _submitted(stream, position, fact, fact.event)
            row = found[fact.subject]
            row |= {"changed_ms": position.ms, "changed_seq": position.seq} | _changes(position, fact)
    return list(found.values())


def _submitted(stream: str, position: Position, fact: Fact, event: types.MessageSubmitted) -> dict[str, Any]:
    nothing = ("delivered_at", "failed_at", "next_attempt_at", "last_error", "last_code", "reason")
    return dict.fromkeys((*nothing, "domain", "certificate")) | {
        "message_id": ids.text(fact.subject),
        "client_id": event.client_id,
        "sender_number_hashed": event.number_hash.hex(),
        "encrypted_body": event.sealed,
        "status": "queued",
        "parked": 0,
        "cycle": 1,
        "attempt_count": 0,
        "queued_at": moment(fact.at),
        "correlation_id": fact.correlation_id,
        "stream": stream,
        "submitted_ms": position.ms,
        "submitted_seq": position.seq,
    }


def _changes(position: Position, fact: Fact) -> dict[str, Any]:
    waiting: dict[str, Any] = {"parked": 0, "reason": None, "next_attempt_at": None}
    found: dict[str, Any] = {}
    match fact.event:
        case types.DeliveryAttempted() as event:
            found = {"attempt_count": event.attempt, "last_code": event.code, "last_error": event.error}
        case types.RetryScheduled() as event:
            found = {"next_attempt_at": moment(position.ms + event.delay_ms)}
        case types.DeliveryDue():
            found = waiting
        case types.Delivered():
            found = waiting | {"status": "delivered", "delivered_at": moment(fact.at)}
        case types.Failed() as event:
            found = waiting | {"status": "failed", "failed_at": moment(fact.at), "reason": event.reason}
        case types.MessageParked() as event:
            found = waiting | {"parked": 1, "reason": event.reason}
        case types.ResendRequested() as event:
            begun = {"status": "queued", "cycle": event.cycle, "attempt_count": 0}
            found = waiting | begun | {"delivered_at": None, "failed_at": None}
            found["encrypted_body"] = event.sealed
    return found


def attempts(history: Histories) -> Rows:
    """One row an attempt."""
    return [
        {
            "message_id": ids.text(fact.subject),
            "ms": position.ms,
            "seq": position.seq,
            "client_id": event.client_id,
            "cycle": event.cycle,
            "attempt": event.attempt,
            "at": moment(fact.at),
            "actor": fact.actor,
            "channel": event.channel,
            "succeeded": int(event.succeeded),
            "latency_ms": event.latency_ms,
            "code": event.code,
            "error": event.error,
        }
        for placed in history.values()
        for position, fact in placed
        if isinstance(event := fact.event, types.DeliveryAttempted)
    ]


def audit_log(history: Histories) -> Rows:
    """Every event as it was stored, each with a hash over the one before."""
    rows: Rows = []
    for stream, placed in history.items():
        head = chain.GENESIS
        for position, fact in placed:
            previous, head = head, chain.link(head, fact.stored(position))
            fields = fact.fields()
            rows.append(
                {
                    "stream": stream,
                    "ms": position.ms,
                    "seq": position.seq,
                    "type": type(fact.event).__name__,
                    "version": 1,
                    "at": moment(fact.at),
                    "actor": fact.actor,
                    "correlation_id": fact.correlation_id,
                    "causation_id": fact.causation,
                    "subject": ids.text(fact.subject) if stream.isdigit() else fact.subject.decode(),
                    "client_id": getattr(fact.event, "client_id", None),
                    "data": fields[b"d"],
                    "envelope": fields[b"m"],
                    "hash": head,
                    "previous_hash": previous,
                }
            )
    return rows


def clients(history: Histories) -> Rows:
    """One row a client."""
    found: dict[str, dict[str, Any]] = {}
    for placed in history.values():
        for position, fact in placed:
            marks = {"changed_ms": position.ms, "changed_seq": position.seq}
            match fact.event:
                case types.ClientRegistered() as event:
                    nothing = ("channel", "target", "erased_at", "erased_reason")
                    found[event.client_id] = dict.fromkeys(nothing) | {
                        "client_id": event.client_id,
                        "domain": event.domain,
                        "status": "active",
                        "registered_at": moment(fact.at),
                    }
                    found[event.client_id] |= marks
                case types.ClientRouteChanged() as event:
                    found[event.client_id] |= marks | {"channel": event.channel, "target": event.target}
                case types.ClientErased() as event:
                    erased = {"erased_at": moment(fact.at), "erased_reason": event.reason}
                    found[event.client_id] |= marks | erased | {"status": "erased"}
    return list(found.values())


def users(history: Histories) -> Rows:
    """One row a person."""
    found: dict[str, dict[str, Any]] = {}
    for placed in history.values():
        for position, fact in placed:
            at, marks = moment(fact.at), {"changed_ms": position.ms, "changed_seq": position.seq}
            match fact.event:
                case types.UserCreated() as event:
                    found[event.user_id] = marks | {
                        "user_id": event.user_id,
                        "email": event.email,
                        "role": event.role,
                        "password_hash": event.password_hash,
                        "client_ids": json.dumps(event.client_ids),
                        "disabled": 0,
                        "created_at": at,
                        "disabled_at": None,
                        "password_at": at,
                    }
                case types.UserRoleChanged() as event:
                    found[event.user_id] |= marks | {"role": event.role}
                case types.UserDisabled() as event:
                    found[event.user_id] |= marks | {"disabled": 1, "disabled_at": at}
    return list(found.values())


def statistics(history: Histories) -> Rows:
    """Counts by hour and client."""
    found: dict[tuple[str, int, str], dict[str, Any]] = {}
    for stream, placed in history.items():
        for position, fact in placed:
            counter = COUNTERS.get(type(fact.event))
            if counter is None:
                continue
            hour, client = position.ms // HOUR_MS * HOUR_MS, fact.event.client_id
            empty = dict.fromkeys((*COUNTERS.values(), "failed_attempts"), 0)
            where = {"stream": stream, "hour": moment(hour), "client_id": client}
            row = found.setdefault((stream, hour, client), empty | where)
            row[counter] += 1
            if isinstance(fact.event, types.DeliveryAttempted) and not fact.event.succeeded:
                row["failed_attempts"] += 1
    return list(found.values())


def latencies(history: Histories) -> Rows:
    """Deliveries of first cycles, by hour and bucket."""
    found: dict[tuple[str, int, int], int] = {}
    for stream, placed in history.items():
        for position, fact in placed:
            if isinstance(fact.event, types.Delivered) and fact.event.cycle == 1:
                bucket = bisect_left(BOUNDS_MS, fact.at - ids.created_ms(fact.subject))
                key = (stream, position.ms // HOUR_MS * HOUR_MS, bucket)
                found[key] = found.get(key, 0) + 1
    return [
        {"stream": stream, "hour": moment(hour), "bucket": bucket, "messages": count}
        for (stream, hour, bucket), count in found.items()
    ]


TABLES: dict[str, Callable[[Histories], Rows]] = {
    "messages": messages,
    "attempts": attempts,
    "audit_log": audit_log,
    "clients": clients,
    "certificates": lambda _: [],
    "users": users,
    "statistics": statistics,
    "latencies": latencies,
}
"""By table: the rows that a history means. Nothing here issues a certificate."""
