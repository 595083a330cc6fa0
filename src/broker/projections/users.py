"""`users`: people who sign in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

import msgspec

from broker.events import types
from broker.projections import base, sql
from broker.projections.base import Folded, Item
from broker.projections.rows import Rows, marks

_FILLERS: Final = {
    "email": "''",
    "role": "''",
    "password_hash": "''",
    "client_ids": "''",
    "created_at": "'2000-01-01'",
    "password_at": "'2000-01-01'",
    "changed_ms": "0",
    "changed_seq": "0",
}


class UsersFold:
    def __init__(self) -> None:
        self._rows = Rows("users", "user_id", _FILLERS)

    def apply(self, item: Item) -> None:
        event = base.expect(item)
        if isinstance(event, types.UserCreated):
            self._rows.put(event.user_id, _created(item, event))
            return
        handler = _HANDLERS.get(type(event))
        if handler is not None:
            key, values = handler(item, event)
            self._rows.change(key, values | _marks(item))

    def finish(self) -> Folded:
        return Folded(self._rows.writes())


def _marks(item: Item) -> dict[str, str]:
    return marks(item.position.ms, item.position.seq)


def _json(client_ids: list[str]) -> str:
    return sql.text(msgspec.json.encode(client_ids).decode())


def _created(item: Item, event: types.UserCreated) -> dict[str, str]:
    at = sql.stamp(item.envelope.at)
    return {
        "email": sql.text(event.email),
        "role": sql.text(event.role),
        "password_hash": sql.text(event.password_hash),
        "client_ids": _json(event.client_ids),
        "disabled": "0",
        "created_at": at,
        "disabled_at": "NULL",
        "password_at": at,
        **_marks(item),
    }


def _role(_: Item, event: types.UserRoleChanged) -> tuple[str, dict[str, str]]:
    return event.user_id, {"role": sql.text(event.role)}


def _clients(_: Item, event: types.UserClientsChanged) -> tuple[str, dict[str, str]]:
    return event.user_id, {"client_ids": _json(event.client_ids)}


def _disabled(item: Item, event: types.UserDisabled) -> tuple[str, dict[str, str]]:
    return event.user_id, {"disabled": "1", "disabled_at": sql.stamp(item.envelope.at)}


def _password(item: Item, event: types.PasswordChanged) -> tuple[str, dict[str, str]]:
    at = sql.stamp(item.envelope.at)
    return event.user_id, {"password_hash": sql.text(event.password_hash), "password_at": at}


_HANDLERS: Final[dict[type, Callable[[Item, Any], tuple[str, dict[str, str]]]]] = {
    types.UserRoleChanged: _role,
    types.UserClientsChanged: _clients,
    types.UserDisabled: _disabled,
    types.PasswordChanged: _password,
}


class Users:
    """The projection `users`."""

    name: ClassVar[str] = "users"
    tables: ClassVar[tuple[str, ...]] = ("users",)

    def wants(self, stream: str) -> bool:
        return base.is_control(stream)

    def begin(self, stream: str, state: bytes | None) -> UsersFold:  # noqa: ARG002  stateless
        return UsersFold()
