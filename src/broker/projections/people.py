"""People as the read model knows them, for lists and for one."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from broker.projections import keyset, queries
from broker.projections.keyset import Cursor, Page, Wanted
from broker.projections.store import Store

_COLUMNS: Final = "user_id,email,role,client_ids,disabled,created_at,disabled_at,password_at"
_names = msgspec.json.Decoder(list[str])


class Person(msgspec.Struct, frozen=True):
    """Somebody who may sign in, or might before; times in milliseconds."""

    user_id: str
    email: str
    role: str
    client_ids: list[str]
    disabled: bool
    created_at: int
    disabled_at: int | None
    password_at: int


class Filter(msgspec.Struct, frozen=True):
    """Which people; None: any. `search` is a part of the e-mail address, `client_id` one whom they see."""

    role: str | None = None
    disabled: bool | None = None
    search: str | None = None
    client_id: str | None = None


async def page(
    store: Store, wanted: Filter, *, per_page: int, at: int | Cursor = 1
) -> tuple[list[Person], Page]:
    """A page by e-mail address. Raises StoreUnavailable, ValidationError."""
    where: list[str] = []
    args: list[str | int] = []
    if wanted.role is not None:
        where.append("role=%s")
        args.append(wanted.role)
    if wanted.disabled is not None:
        where.append("disabled=%s")
        args.append(int(wanted.disabled))
    if wanted.search is not None:
        where.append("LOCATE(%s,email)>0")
        args.append(wanted.search.lower())
    if wanted.client_id is not None:
        where.append("JSON_CONTAINS(client_ids,%s)")
        args.append(msgspec.json.encode(wanted.client_id).decode())
    # Addresses are unique, and stay a person's for good.
    chosen = Wanted(table="users", columns=_COLUMNS, where=where, args=args, order=("email",))
    found = await keyset.page(store, chosen, per_page=per_page, at=at)
    return [_person(row) for row in found.rows], found


async def one(store: Store, user_id: str) -> Person | None:
    """The person of this id, None while the read model does not know them. Raises StoreUnavailable."""
    rows = await store.select(f"SELECT {_COLUMNS} FROM users WHERE user_id=%s", (user_id,))
    return _person(rows[0]) if rows else None


def _person(row: dict[str, Any]) -> Person:
    return Person(
        user_id=row["user_id"],
        email=row["email"],
        role=row["role"],
        client_ids=_names.decode(row["client_ids"]),
        disabled=bool(row["disabled"]),
        created_at=queries.milliseconds(row["created_at"]),
        disabled_at=queries.optional_milliseconds(row["disabled_at"]),
        password_at=queries.milliseconds(row["password_at"]),
    )
