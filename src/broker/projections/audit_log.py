"""`audit_log`: every event as it was stored, chained by hash per stream; its state is the chain's head.

An event that this version cannot decode is recorded all the same, without its client: nothing may be missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final
from uuid import UUID

from broker.errors import UnknownEvent
from broker.events import chain, upcasting
from broker.events.codec import Stored
from broker.events.positions import Position
from broker.projections import base, sql
from broker.projections.base import Folded, Item

COLUMNS: Final = (
    "stream",
    "ms",
    "seq",
    "type",
    "version",
    "at",
    "actor",
    "correlation_id",
    "causation_id",
    "subject",
    "client_id",
    "data",
    "envelope",
    "hash",
    "previous_hash",
)


class AuditFold:
    def __init__(self, stream: str, state: bytes | None) -> None:
        self._head = state or chain.GENESIS
        self._head_hex = self._head.hex()
        self._messages = base.is_partition(stream)
        self._rows: list[str] = []

    def apply(self, item: Item) -> None:
        stored, envelope = item.stored, item.envelope
        stream, ms, seq = stored.position
        kind = _KINDS.get(stored.tag) or _kind(stored.tag)
        client = getattr(item.event, "client_id", None)
        subject = _message(item) if self._messages else sql.text(item.subject.decode("utf-8"))
        head = chain.link(self._head, stored)
        head_hex = head.hex()
        correlation = envelope.correlation
        if correlation is None and self._messages:
            # As `envelopes.conversation` says, without its detours: most messages are their own.
            correlation_id = f"'{stored.subject.hex()}'"
        elif correlation is not None and len(correlation) == 16:
            correlation_id = f"'{correlation.hex()}'"
        else:
            correlation_id = sql.text(envelope.correlation_id)
        causation = "NULL" if envelope.causation is None else sql.text(envelope.causation)
        self._rows.append(
            f"('{stream}',{ms},{seq},{kind},{sql.stamp(envelope.at)},{sql.name(envelope.actor)},"
            f"{correlation_id},{causation},{subject},{sql.name(client)},x'{stored.data.hex()}',"
            f"x'{stored.envelope.hex()}',x'{head_hex}',x'{self._head_hex}')"
        )
        self._head, self._head_hex = head, head_hex

    def finish(self) -> Folded:
        return Folded([sql.Insert("audit_log", COLUMNS, self._rows)], self._head)


_KINDS: dict[str, str] = {}


def _kind(tag: str) -> str:
    """Literals of type and version, if they give the tag back: exports rebuild it from the two columns."""
    name, version = upcasting.split(tag)
    if not name.isidentifier() or not name.isascii() or upcasting.tag_of(name, version) != tag:
        raise UnknownEvent(f"{tag!r} is not a well-formed event tag.")
    kind = f"'{name}',{version}"
    if len(_KINDS) < 4096:
        _KINDS[tag] = kind
    return kind


def _message(item: Item) -> str:
    if len(item.subject) != 16:
        raise UnknownEvent(f"{item.position}: the subject of a message event is its 16-byte id.")
    return base.message_id(item.subject)


def stored(row: Mapping[str, Any]) -> Stored:
    """The event of an `audit_log` row exactly as it lay in the log: what its hash covers."""
    subject: str = row["subject"]
    raw = UUID(subject).bytes if base.is_partition(row["stream"]) else subject.encode()
    position = Position(row["stream"], int(row["ms"]), int(row["seq"]))
    tag = upcasting.tag_of(row["type"], row["version"])
    return Stored(position, tag, raw, bytes(row["envelope"]), bytes(row["data"]))


class AuditLog:
    """The projection `audit_log`."""

    name: ClassVar[str] = "audit_log"
    tables: ClassVar[tuple[str, ...]] = ("audit_log",)

    def wants(self, stream: str) -> bool:  # noqa: ARG002  all of them
        return True

    def begin(self, stream: str, state: bytes | None) -> AuditFold:
        return AuditFold(stream, state)
