"""`messages`: one row a message.

`attempt_count` counts the attempts of the current cycle, as `max_attempts` does; `attempts` has them all.
A parked message stays `queued` with `parked = 1`; a discarded one is `failed`; both say why in `reason`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from operator import itemgetter
from typing import Any, ClassVar, Final

from broker.errors import UnknownEvent
from broker.events import envelope, types
from broker.projections import base, sql
from broker.projections.base import Folded, Item

COLUMNS: Final = (
    "message_id",
    "client_id",
    "sender_number_hashed",
    "encrypted_body",
    "status",
    "parked",
    "reason",
    "cycle",
    "attempt_count",
    "queued_at",
    "delivered_at",
    "failed_at",
    "next_attempt_at",
    "last_error",
    "last_code",
    "domain",
    "certificate",
    "correlation_id",
    "stream",
    "submitted_ms",
    "submitted_seq",
    "changed_ms",
    "changed_seq",
)
_FILLERS: Final = {
    "client_id": "''",
    "sender_number_hashed": "''",
    "encrypted_body": "''",
    "status": "'queued'",
    "queued_at": "'2000-01-01'",
    "stream": "''",
    "submitted_ms": "0",
    "submitted_seq": "0",
    "changed_ms": "0",
    "changed_seq": "0",
}
# Left out of a statement whose rows all have in them what a row has by itself: 3 % of the database's time.
_SPARSE: Final = (
    "parked",
    "reason",
    "cycle",
    "failed_at",
    "next_attempt_at",
    "last_error",
    "last_code",
    "domain",
    "certificate",
)
# What a row has before its first attempt.
_FRESH: Final = dict.fromkeys(COLUMNS, "NULL") | {
    "status": "'queued'",
    "parked": "0",
    "cycle": "1",
    "attempt_count": "0",
}


class MessagesFold:
    """Rows are dicts of literals: whole for messages submitted in this batch, partial for older ones."""

    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._new: dict[bytes, dict[str, str]] = {}
        self._changed: dict[bytes, dict[str, str]] = {}

    def apply(self, item: Item) -> None:
        event = base.expect(item)
        subject = item.subject
        if len(subject) != 16:
            raise UnknownEvent(f"{item.position}: the subject of a message event is its 16-byte id.")
        if isinstance(event, types.MessageSubmitted):
            if subject in self._new:
                raise UnknownEvent(f"{item.position}: the message was submitted before.")
            self._new[subject] = self._submitted(item, event)
            return
        changes = _CHANGES.get(type(event))
        if changes is None:
            raise UnknownEvent(f"{item.position}: {type(event).__name__} is not an event of messages.")
        values = changes(item, event)
        values["changed_ms"] = str(item.position.ms)
        values["changed_seq"] = str(item.position.seq)
        row = self._new.get(subject)
        if row is None:
            row = self._changed.setdefault(subject, {})
        row.update(values)

    def finish(self) -> Folded:
        writes: list[sql.Write] = []
        if self._new:
            writes.append(_inserted(self._new.values()))
        shapes: dict[tuple[str, ...], list[str]] = {}
        for key, row in self._changed.items():
            names = tuple(sorted(row))
            values = ",".join([row[name] for name in names])
            shapes.setdefault(names, []).append(f"({base.message_id(key)},{values})")
        for names, rows in shapes.items():
            fillers = [(name, value) for name, value in _FILLERS.items() if name not in names]
            writes.append(sql.Update("messages", ("message_id", *names), rows, fillers))
        return Folded(writes)

    def _submitted(self, item: Item, event: types.MessageSubmitted) -> dict[str, str]:
        ms, seq = str(item.position.ms), str(item.position.seq)
        row = _FRESH.copy()
        row["message_id"] = base.message_id(item.subject)
        row["client_id"] = sql.name(event.client_id)
        row["sender_number_hashed"] = f"'{event.number_hash.hex()}'"
        row["encrypted_body"] = f"x'{event.sealed.hex()}'"
        row["queued_at"] = sql.stamp(item.envelope.at)
        if event.domain is not None:
            row["domain"] = sql.text(base.clip(event.domain, 255))
        if event.certificate is not None:
            row["certificate"] = f"'{event.certificate.hex()}'"
        row["correlation_id"] = sql.text(envelope.conversation(item.envelope, item.subject))
        row["stream"] = f"'{self._stream}'"
        row["submitted_ms"] = row["changed_ms"] = ms
        row["submitted_seq"] = row["changed_seq"] = seq
        return row


def _inserted(rows: Collection[dict[str, str]]) -> sql.Insert:
    """The insert of whole rows, without sparse columns that none of them sets."""
    columns = [
        name for name in COLUMNS if name not in _SPARSE or any(row[name] != _FRESH[name] for row in rows)
    ]
    values = itemgetter(*columns)
    return sql.Insert("messages", columns, [f"({','.join(values(row))})" for row in rows])


def _attempted(_: Item, event: types.DeliveryAttempted) -> dict[str, str]:
    return {
        "attempt_count": str(event.attempt),
        "last_code": sql.literal(event.code),
        "last_error": sql.text(base.clip(event.error)),
    }


def _delivered(item: Item, _: types.Delivered) -> dict[str, str]:
    return {
        "status": "'delivered'",
        "parked": "0",
        "reason": "NULL",
        "delivered_at": sql.stamp(item.envelope.at),
        "next_attempt_at": "NULL",
    }


def _failed(item: Item, event: types.Failed | types.MessageDiscarded) -> dict[str, str]:
    return {
        "status": "'failed'",
        "parked": "0",
        "reason": sql.text(base.clip(event.reason)),
        "failed_at": sql.stamp(item.envelope.at),
        "next_attempt_at": "NULL",
    }


def _retry(item: Item, event: types.RetryScheduled) -> dict[str, str]:
    return {"next_attempt_at": sql.stamp(item.position.ms + event.delay_ms)}


def _due(_: Item, __: types.DeliveryDue) -> dict[str, str]:
    # A parked message that a person releases comes back as due.
    return {"parked": "0", "reason": "NULL", "next_attempt_at": "NULL"}


def _parked(_: Item, event: types.MessageParked) -> dict[str, str]:
    return {"parked": "1", "reason": sql.text(base.clip(event.reason)), "next_attempt_at": "NULL"}


def _resent(_: Item, event: types.ResendRequested) -> dict[str, str]:
    return {
        "status": "'queued'",
        "parked": "0",
        "reason": "NULL",
        "cycle": str(event.cycle),
        "attempt_count": "0",
        "delivered_at": "NULL",
        "failed_at": "NULL",
        "next_attempt_at": "NULL",
        "encrypted_body": sql.blob(event.sealed),
    }


_CHANGES: Final[dict[type[types.Event], Callable[[Item, Any], dict[str, str]]]] = {
    types.DeliveryAttempted: _attempted,
    types.Delivered: _delivered,
    types.Failed: _failed,
    types.MessageDiscarded: _failed,
    types.RetryScheduled: _retry,
    types.DeliveryDue: _due,
    types.MessageParked: _parked,
    types.ResendRequested: _resent,
}
"""The columns that each event sets, whatever the row held before."""


class Messages:
    """The projection `messages`."""

    name: ClassVar[str] = "messages"
    tables: ClassVar[tuple[str, ...]] = ("messages",)

    def wants(self, stream: str) -> bool:
        return base.is_partition(stream)

    def begin(self, stream: str, state: bytes | None) -> MessagesFold:  # noqa: ARG002  stateless
        return MessagesFold(stream)
