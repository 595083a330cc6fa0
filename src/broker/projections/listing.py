"""Pages of messages, the newest first: what the portal and the admin API list.

Rows are in the order of `(queued_at, message_id)`. Every filter is an equality (client, status, number hash)
before that order in an index, so a page is merged from one short range read for each combination. Decision
0007 has the reasons for the cursor, the bound of `total`, and the depth of page numbers.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Sequence
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from broker.domain import ids
from broker.errors import ValidationError
from broker.projections import queries, sql
from broker.projections.queries import Listed
from broker.projections.store import Store

BOUND: Final = 10_000
"""Messages that are counted, and reached by page numbers; a cursor goes on from there."""
MAX_PER_PAGE: Final = 200

Status = Literal["queued", "delivered", "failed"]
STATUSES: Final[tuple[Status, ...]] = ("queued", "delivered", "failed")

COLUMNS: Final = Listed.__struct_fields__
_HASHES_ASKED: Final = 200


class Filter(msgspec.Struct, frozen=True):
    """Which messages. `clients`: of these, of all for None; an empty one has none.

    `since` and `until`: `queued_at` in milliseconds, `until` excluded. `number_hashes`: a number under every
    key of the clients concerned, 32 bytes each. `parked`: none but these, and then `parked_reason` counts and
    not `status`.
    """

    clients: tuple[str, ...] | None
    status: Status | None = None
    since: int | None = None
    until: int | None = None
    number_hashes: tuple[bytes, ...] | None = None
    parked: bool = False
    parked_reason: str | None = None


class Cursor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The last message of a page, the number of the next one, and the count; opaque text outside."""

    queued_at: Annotated[int, Meta(ge=0, le=253_402_300_799_999)]
    message_id: Annotated[bytes, Meta(min_length=16, max_length=16)]
    page: Annotated[int, Meta(ge=2, le=2**40)]
    counted: Annotated[int, Meta(ge=0, le=BOUND + 1)]
    """How many matched when the first page was read: counting costs more than a page."""

    def text(self) -> str:
        """The form that callers hand on."""
        return base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).decode().rstrip("=")


class Page(msgspec.Struct, frozen=True):
    """`messages` of page `page`, and where they stand among all that match.

    `total` counts up to BOUND, and on a walk by cursor stays that of its first page. `total_exact` is false
    where there are more, and then `pages` is how far page numbers go. `next` is None at the end.
    """

    messages: list[Listed]
    total: int
    total_exact: bool
    page: int
    per_page: int
    pages: int
    next: Cursor | None


def cursor(value: str) -> Cursor:
    """The cursor that `Cursor.text` made. Raises ValidationError."""
    try:
        raw = base64.b64decode(value + "=" * (-len(value) % 4), b"-_", validate=True)
        return msgspec.msgpack.decode(raw, type=Cursor)
    except (ValueError, msgspec.MsgspecError):
        raise ValidationError("cursor", "must be the `next` of an earlier page") from None


async def page(store: Store, wanted: Filter, *, per_page: int, at: int | Cursor = 1) -> Page:
    """One page: by number, or what comes after a cursor.

    Raises StoreUnavailable, and ValidationError for a page number beyond BOUND messages.
    """
    number = at if isinstance(at, int) else at.page
    if isinstance(at, int) and at * per_page > max(BOUND, per_page):
        raise ValidationError(
            "page", f"goes up to {max(1, BOUND // per_page)} here; follow `next` for what lies deeper"
        )
    wanted = await _narrowed(store, wanted)
    keys = _branches(wanted)
    if not keys:
        return Page([], 0, True, number, per_page, 0, None)
    rows = await store.select(*page_query(wanted, keys, at, per_page + 1))
    if isinstance(at, Cursor):
        counted = at.counted
    else:
        counted = int((await store.select(*count_query(wanted, keys)))[0]["n"])
    exact = counted <= BOUND
    total = min(counted, BOUND)
    listed = [queries.listed(row) for row in rows[:per_page]]
    following = None
    if len(rows) > per_page:
        last = listed[-1]
        following = Cursor(last.queued_at, ids.parse(last.message_id), number + 1, counted)
    pages = -(-total // per_page) if exact else max(1, BOUND // per_page)
    return Page(listed, total, exact, number, per_page, pages, following)


async def newest(store: Store, wanted: Filter, count: int) -> list[Listed]:
    """The newest that match, without counting the others. Raises StoreUnavailable."""
    wanted = await _narrowed(store, wanted)
    branches = _branches(wanted)
    if not branches:
        return []
    return [queries.listed(row) for row in await store.select(*page_query(wanted, branches, 1, count))]


async def sealed(store: Store, message_ids: Iterable[str]) -> dict[str, bytes]:
    """The ciphertexts of messages, by id, for who may show something of their insides."""
    wanted = tuple(message_ids)
    if not wanted:
        return {}
    rows = await store.select(
        f"SELECT message_id,encrypted_body FROM messages WHERE message_id IN ({marks(wanted)})", wanted
    )
    return {row["message_id"]: bytes(row["encrypted_body"]) for row in rows}


class Branch(msgspec.Struct, frozen=True):
    """One range of one index: the equalities before the order."""

    index: str
    where: str
    args: tuple[str, ...]
    owned: str = ""
    owners: tuple[str, ...] = ()
    """A condition on the row, which no match can fail: it guards what is shown, and need not be counted."""


def _branches(wanted: Filter) -> list[Branch]:
    statuses = STATUSES if wanted.status is None else (wanted.status,)
    clients = None if wanted.clients is None else tuple(sorted(set(wanted.clients)))
    if wanted.parked:
        return [_parked(wanted, clients)]
    if wanted.number_hashes is not None:
        owned = ""
        owners: tuple[str, ...] = ()
        if clients is not None:
            if not clients:
                return []
            # The hashes are the clients' own already; a caller's mistake must not show another's messages.
            owned, owners = f" AND client_id IN ({marks(clients)})", clients
        return [
            Branch("number_queued", "sender_number_hashed=%s AND status=%s", (hashed, status), owned, owners)
            for hashed in sorted({value.hex() for value in wanted.number_hashes})
            for status in statuses
        ]
    if clients is None:
        return [Branch("status_queued", "status=%s", (status,)) for status in statuses]
    return [
        Branch("client_status_queued", "client_id=%s AND status=%s", (client, status))
        for client in clients
        for status in statuses
    ]


def _parked(wanted: Filter, clients: tuple[str, ...] | None) -> Branch:
    """Few messages are parked, so what else is asked is looked for among them."""
    hashes, reason = wanted.number_hashes, wanted.parked_reason
    asked = {
        "client_id": clients,
        "sender_number_hashed": None if hashes is None else tuple(value.hex() for value in hashes),
        "reason": None if reason is None else (reason,),
    }
    where = "parked=1"
    args: tuple[str, ...] = ()
    for column, values in asked.items():
        if values is not None:
            where += f" AND {column} IN ({marks(values)})" if values else " AND FALSE"
            args += values
    return Branch("parked_queued", where, args)


async def _narrowed(store: Store, wanted: Filter) -> Filter:
    """Without the hashes that no message has: over many clients nearly all of them."""
    hashes = wanted.number_hashes
    if hashes is None or len(hashes) <= len(STATUSES):
        return wanted
    found: list[bytes] = []
    for first in range(0, len(hashes), _HASHES_ASKED):
        some = [value.hex() for value in hashes[first : first + _HASHES_ASKED]]
        one = "(SELECT sender_number_hashed AS h FROM messages WHERE sender_number_hashed=%s LIMIT 1)"
        rows = await store.select(" UNION ALL ".join([one] * len(some)), some)
        found += [bytes.fromhex(row["h"]) for row in rows]
    return msgspec.structs.replace(wanted, number_hashes=tuple(found))


def page_query(
    wanted: Filter, branches: Sequence[Branch], at: int | Cursor, limit: int
) -> tuple[str, list[str]]:
    """The statement of a page of up to `limit` rows, and its arguments."""
    offset = 0 if isinstance(at, Cursor) else (at - 1) * (limit - 1)
    where, more = _times(wanted)
    if isinstance(at, Cursor):
        stamp = _stamp(at.queued_at)
        where += " AND queued_at<=%s AND (queued_at<%s OR message_id<%s)"
        more += [stamp, stamp, ids.text(at.message_id)]
    order = "ORDER BY queued_at DESC,message_id DESC"
    parts, args = [], []
    for branch in branches:
        parts.append(
            f"(SELECT message_id AS id,queued_at AS q FROM messages FORCE INDEX ({branch.index}) "
            f"WHERE {branch.where}{branch.owned}{where} {order} LIMIT {offset + limit})"
        )
        args += [*branch.args, *branch.owners, *more]
    keys = f"{' UNION ALL '.join(parts)} ORDER BY q DESC,id DESC LIMIT {limit} OFFSET {offset}"
    # Rows are read for the page alone; what is passed over is read in the index.
    columns = ",".join(f"m.{name}" for name in COLUMNS)
    source = f"({keys}) k STRAIGHT_JOIN messages m ON m.message_id=k.id"
    return f"SELECT {columns} FROM {source} ORDER BY k.q DESC,k.id DESC", args


def count_query(wanted: Filter, branches: Sequence[Branch]) -> tuple[str, list[str]]:
    """The statement that counts, one more than BOUND at most in each branch; and its arguments."""
    where, more = _times(wanted)
    parts, args = [], []
    for branch in branches:
        parts.append(
            f"(SELECT 1 AS one FROM messages FORCE INDEX ({branch.index}) "
            f"WHERE {branch.where}{where} LIMIT {BOUND + 1})"
        )
        args += [*branch.args, *more]
    return f"SELECT COUNT(*) AS n FROM ({' UNION ALL '.join(parts)} LIMIT {BOUND + 1}) c", args


def _times(wanted: Filter) -> tuple[str, list[str]]:
    where, args = "", []
    if wanted.since is not None:
        where += " AND queued_at>=%s"
        args.append(_stamp(wanted.since))
    if wanted.until is not None:
        where += " AND queued_at<%s"
        args.append(_stamp(wanted.until))
    return where, args


def _stamp(ms: int) -> str:
    return sql.stamp(ms)[1:-1]


def marks(values: Collection[object]) -> str:
    """The placeholders of a list of values."""
    return ",".join(["%s"] * len(values))
