"""Pages of the audit log, the newest first, for auditors: filtered, in exported form, by cursor.

The order is `(at, stream, ms, seq)`: total, and fixed once an event is recorded. Subject, client and time are
read by index. Type, actor and correlation id are looked for among at most SCAN events a request, so that no
question costs more than that: a page may be short, even empty, and still name a `next`. (An index for each
would be paid for by every event of every message.)
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Final, Protocol

import msgspec
from msgspec import Meta

from broker.errors import ValidationError
from broker.events import exported, exported_walk, types
from broker.events.exported import ExportedLine
from broker.events.positions import Position
from broker.projections import audit_log, queries, sql
from broker.projections.store import Store

SCAN: Final = 10_000
"""Events looked at for one page."""
MAX_LIMIT: Final = 500

_KEY: Final = ("at", "stream", "ms", "seq")
_COLUMNS: Final = ("at", "stream", "ms", "seq", "type", "version", "subject", "envelope", "data", "hash",
                   "previous_hash")  # fmt: skip


class Filter(msgspec.Struct, frozen=True):
    """Which events; `since` and `until` are milliseconds of when they occurred, `until` excluded."""

    since: int | None = None
    until: int | None = None
    types: tuple[str, ...] | None = None
    subject: str | None = None
    actor: str | None = None
    client_id: str | None = None
    correlation_id: str | None = None


class Asked(Protocol):
    """What was asked for, by parameters' names; each method raises ValidationError."""

    def text(self, name: str) -> str | None: ...

    def client(self, name: str = "client_id") -> str | None: ...

    def correlation(self, name: str = "correlation_id") -> str | None: ...

    def since(self, name: str) -> int | None: ...

    def until(self, name: str) -> int | None: ...


class Cursor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The last event that a page looked at; opaque text outside."""

    at: Annotated[int, Meta(ge=0, le=253_402_300_799_999)]
    stream: Annotated[str, Meta(pattern=r"^[0-9a-z]{1,16}$")]
    ms: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    seq: Annotated[int, Meta(ge=0, le=2**63 - 1)]

    def text(self) -> str:
        """The form that callers hand on."""
        return base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).decode().rstrip("=")


class Page(msgspec.Struct, frozen=True):
    """Events in exported form; `next` is None when nothing older is left to look at."""

    events: list[ExportedLine]
    next: Cursor | None


def wanted_by(query: Asked) -> Filter:
    """The filter that these parameters make. Raises ValidationError."""
    names = query.text("type")
    return Filter(
        since=query.since("from_date"),
        until=query.until("to_date"),
        types=None if names is None else known_types(names.split(",")),
        subject=query.text("subject"),
        actor=query.text("actor"),
        client_id=query.client(),
        correlation_id=query.correlation(),
    )


def exported_by(query: Asked) -> exported_walk.Filter:
    """The filter of an export that these parameters make. Raises ValidationError."""
    wanted = msgspec.structs.asdict(wanted_by(query))
    return exported_walk.Filter(**wanted | {"types": wanted["types"] or ()})


def cursor(value: str) -> Cursor:
    """The cursor that `Cursor.text` made. Raises ValidationError."""
    try:
        raw = base64.b64decode(value + "=" * (-len(value) % 4), b"-_", validate=True)
        return msgspec.msgpack.decode(raw, type=Cursor)
    except (ValueError, msgspec.MsgspecError):
        raise ValidationError("cursor", "must be the `next` of an earlier page") from None


async def page(store: Store, wanted: Filter, *, limit: int, after: Cursor | None = None) -> Page:
    """Up to `limit` events after the cursor, older ones. Raises StoreUnavailable."""
    last = None
    if _sieve(wanted)[0]:
        edge = await store.select(*window_query(wanted, after, 1, offset=SCAN - 1))
        last = _cursor(edge[0]) if edge else None
    rows = await store.select(*page_query(wanted, after, limit + 1, last))
    events = [_line(row) for row in rows[:limit]]
    return Page(events, _cursor(rows[limit - 1]) if len(rows) > limit else last)


async def one(store: Store, position: Position) -> ExportedLine | None:
    """The event there, None where the read model knows none. Raises StoreUnavailable."""
    rows = await store.select(
        f"SELECT {','.join(_COLUMNS)} FROM audit_log WHERE stream=%s AND ms=%s AND seq=%s", position
    )
    return _line(rows[0]) if rows else None


def page_query(
    wanted: Filter, after: Cursor | None, limit: int, last: Cursor | None = None
) -> tuple[str, list[Any]]:
    """The statement of up to `limit` events, none older than `last`; and its arguments."""
    sieve, wants = _sieve(wanted)
    if sieve:
        # Row by row until the page is full.
        index, where, args = _range(wanted, after, last)
        return (
            f"SELECT {','.join(_COLUMNS)} FROM audit_log FORCE INDEX ({index}) "
            f"WHERE {' AND '.join([*where, *sieve])} ORDER BY {_order('')} LIMIT {limit}"
        ), [*args, *wants]
    keys, args = window_query(wanted, after, limit)
    columns = ",".join(f"a.{name}" for name in _COLUMNS)
    joined = " AND ".join(f"a.{name}=k.{name}" for name in _KEY[1:])
    return (
        f"SELECT {columns} FROM ({keys}) k STRAIGHT_JOIN audit_log a ON {joined} ORDER BY {_order('k.')}"
    ), args


def window_query(wanted: Filter, after: Cursor | None, limit: int, offset: int = 0) -> tuple[str, list[Any]]:
    """The statement of the next `limit` keys by index, whatever else is asked of the events."""
    index, where, args = _range(wanted, after, None)
    return (
        f"SELECT {','.join(_KEY)} FROM audit_log FORCE INDEX ({index}) WHERE {' AND '.join(where)} "
        f"ORDER BY {_order('')} LIMIT {limit} OFFSET {offset}"
    ), args


def _range(wanted: Filter, after: Cursor | None, last: Cursor | None) -> tuple[str, list[str], list[Any]]:
    """What an index answers: its name, conditions, their arguments. `after` is excluded, `last` is not."""
    index, where = "at", ["1=1"]
    args: list[Any] = []
    if wanted.subject is not None:
        index, where, args = "subject", ["subject=%s"], [wanted.subject]
    elif wanted.client_id is not None:
        index, where, args = "client_at", ["client_id=%s"], [wanted.client_id]
    for sign, ms in ((">=", wanted.since), ("<", wanted.until)):
        if ms is not None:
            where.append(f"at{sign}%s")
            args.append(_stamp(ms))
    for sign, end, edge in (("<", "<", after), (">", ">=", last)):
        if edge is not None:
            stamp = _stamp(edge.at)
            same = f"ms{sign}%s OR (ms=%s AND seq{end}%s)"
            where.append(f"at{sign}=%s AND (at{sign}%s OR stream{sign}%s OR (stream=%s AND ({same})))")
            args += [stamp, stamp, edge.stream, edge.stream, edge.ms, edge.ms, edge.seq]
    return index, where, args


def _order(table: str) -> str:
    return ",".join(f"{table}{name} DESC" for name in _KEY)


def _sieve(wanted: Filter) -> tuple[list[str], list[str]]:
    """What no index answers: conditions, and their arguments."""
    where: list[str] = []
    args: list[str] = []
    if wanted.types is not None:
        where.append(f"type IN ({','.join(['%s'] * len(wanted.types))})" if wanted.types else "FALSE")
        args += wanted.types
    for column, value in (("actor", wanted.actor), ("correlation_id", wanted.correlation_id)):
        if value is not None:
            where.append(f"{column}=%s")
            args.append(value)
    if wanted.subject is not None and wanted.client_id is not None:
        where.append("client_id=%s")
        args.append(wanted.client_id)
    return where, args


def _line(row: dict[str, Any]) -> ExportedLine:
    return exported.export(audit_log.stored(row), bytes(row["hash"]), bytes(row["previous_hash"]))


def _cursor(row: dict[str, Any]) -> Cursor:
    return Cursor(queries.milliseconds(row["at"]), row["stream"], int(row["ms"]), int(row["seq"]))


def _stamp(ms: int) -> str:
    return sql.stamp(ms)[1:-1]


def known_types(names: Sequence[str]) -> tuple[str, ...]:
    """Event types that there are. Raises ValidationError for another name."""
    for name in names:
        if name not in types.ALL:
            raise ValidationError(
                "type", f"must be an event type, such as MessageSubmitted, not {name[:64]!r}"
            )
    return tuple(names)
