"""Pages of the small tables (people, clients, certificates), in an order that no insert changes.

As in lists of messages (decision 0007): page numbers within the first `listing.BOUND` rows, a cursor beyond
and for walks that are the same whatever is added meanwhile, and a total that is counted up to that bound.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from broker.errors import ValidationError
from broker.projections import queries, sql
from broker.projections.listing import BOUND
from broker.projections.store import Store

MAX_KEY: Final = 320
_LAST_MS: Final = 253_402_300_799_999


class Cursor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The key of a page's last row, the number of the next page, and the count; opaque text outside."""

    key: Annotated[list[int | Annotated[str, Meta(max_length=MAX_KEY)]], Meta(min_length=1, max_length=2)]
    page: Annotated[int, Meta(ge=2, le=2**40)]
    counted: Annotated[int, Meta(ge=0, le=BOUND + 1)]

    def text(self) -> str:
        """The form that callers hand on."""
        return base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).decode().rstrip("=")


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows of a table, and in which order: `order` is unique together, its times are DATETIME(3)."""

    table: str
    columns: str
    where: Sequence[str] = ()
    args: Sequence[str | int] = ()
    order: Sequence[str]
    times: frozenset[str] = frozenset()
    descending: bool = False


class Page(msgspec.Struct, frozen=True):
    """Rows of page `page`; the other fields as in `listing.Page`."""

    rows: list[dict[str, Any]]
    total: int
    total_exact: bool
    page: int
    per_page: int
    pages: int
    next: str | None


def cursor(value: str) -> Cursor:
    """The cursor that `Cursor.text` made. Raises ValidationError."""
    try:
        raw = base64.b64decode(value + "=" * (-len(value) % 4), b"-_", validate=True)
        return msgspec.msgpack.decode(raw, type=Cursor)
    except (ValueError, msgspec.MsgspecError):
        raise _foreign() from None


async def page(store: Store, wanted: Wanted, *, per_page: int, at: int | Cursor = 1) -> Page:
    """One page: by number, or what comes after a cursor.

    Raises StoreUnavailable, and ValidationError for a page number beyond BOUND rows or another list's cursor.
    """
    number = at if isinstance(at, int) else at.page
    if isinstance(at, int) and at * per_page > max(BOUND, per_page):
        raise ValidationError(
            "page", f"goes up to {max(1, BOUND // per_page)} here; follow `next` for what lies deeper"
        )
    rows = await store.select(*page_query(wanted, at, per_page))
    counted = at.counted if isinstance(at, Cursor) else await _count(store, wanted)
    following = None
    if len(rows) > per_page:
        rows = rows[:per_page]
        following = Cursor(_key(wanted, rows[-1]), number + 1, counted).text()
    exact = counted <= BOUND
    total = min(counted, BOUND)
    pages = -(-total // per_page) if exact else max(1, BOUND // per_page)
    return Page(rows, total, exact, number, per_page, pages, following)


def page_query(wanted: Wanted, at: int | Cursor, per_page: int) -> tuple[str, list[str | int]]:
    """The statement of a page and one row more, and its arguments."""
    where, args = list(wanted.where), list(wanted.args)
    offset = 0
    if isinstance(at, Cursor):
        condition, more = _after(wanted, at)
        where.append(condition)
        args += more
    else:
        offset = (at - 1) * per_page
    way = " DESC" if wanted.descending else ""
    order = ",".join(f"{name}{way}" for name in wanted.order)
    chosen = f"SELECT {wanted.columns} FROM {wanted.table}{_where(where)}"
    return f"{chosen} ORDER BY {order} LIMIT {per_page + 1} OFFSET {offset}", args


async def _count(store: Store, wanted: Wanted) -> int:
    rows = await store.select(
        "SELECT COUNT(*) AS n FROM "
        f"(SELECT 1 AS one FROM {wanted.table}{_where(wanted.where)} LIMIT {BOUND + 1}) c",
        wanted.args,
    )
    return int(rows[0]["n"])


def _after(wanted: Wanted, at: Cursor) -> tuple[str, list[str | int]]:
    """The rows behind the cursor's."""
    if len(at.key) != len(wanted.order):
        raise _foreign()
    sign = "<" if wanted.descending else ">"
    key: list[str | int] = [
        _value(wanted, name, value) for name, value in zip(wanted.order, at.key, strict=True)
    ]
    first, *rest = wanted.order
    if not rest:
        return f"{first}{sign}%s", key
    return f"({first}{sign}%s OR ({first}=%s AND {rest[0]}{sign}%s))", [key[0], *key]


def _value(wanted: Wanted, name: str, value: int | str) -> str:
    """A part of a cursor's key as the column compares it. Raises ValidationError."""
    if name in wanted.times:
        if not isinstance(value, int) or not 0 <= value <= _LAST_MS:
            raise _foreign()
        return sql.stamp(value)[1:-1]
    if not isinstance(value, str):
        raise _foreign()
    return value


def _key(wanted: Wanted, row: dict[str, Any]) -> list[int | str]:
    return [
        queries.milliseconds(value) if isinstance(value, datetime) else str(value)
        for value in (row[name] for name in wanted.order)
    ]


def _where(conditions: Sequence[str]) -> str:
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""


def _foreign() -> ValidationError:
    return ValidationError("cursor", "must be the `next` of an earlier page")
