"""Bodies of the admin API about people; the OpenAPI document is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from broker.services.server.admin.paging import Paged

Role = Literal["user", "admin", "auditor"]
ClientIds = Annotated[list[str], Meta(max_length=500, description="Whose messages a user sees.")]
Password = Annotated[
    str, Meta(description="8 characters or more, at most 72 bytes in UTF-8, no NUL.", max_length=1024)
]


class NewUser(msgspec.Struct, forbid_unknown_fields=True):
    """Somebody who may sign in."""

    email: str
    password: Password
    role: Role = "user"
    client_ids: ClientIds = []

    def __repr__(self) -> str:
        return "<NewUser>"


class RoleChange(msgspec.Struct, forbid_unknown_fields=True):
    """What they may do from now on."""

    role: Role


class ClientsChange(msgspec.Struct, forbid_unknown_fields=True):
    """All the clients whose messages they see from now on."""

    client_ids: ClientIds


class PasswordReset(msgspec.Struct, forbid_unknown_fields=True):
    """Another password, by an admin who does not know the one that is."""

    password: Password

    def __repr__(self) -> str:
        return "<PasswordReset>"


class User(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who may sign in, or might before."""

    user_id: str
    email: str
    role: Role
    client_ids: list[str]
    disabled: bool
    created_at: str
    disabled_at: str | None
    password_changed_at: str


class Users(Paged, frozen=True, kw_only=True):
    """A page of people, by e-mail address."""

    users: Sequence[User]


class Changed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """As they are now. `visible` is there, false, while lists do not show it yet."""

    user_id: str
    email: str
    role: Role
    client_ids: Sequence[str]
    disabled: bool
    visible: bool = True
