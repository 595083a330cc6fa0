"""Bodies of the portal API for signing in and the profile; the OpenAPI document is made of them."""

from __future__ import annotations

from typing import Literal

import msgspec


class Login(msgspec.Struct, forbid_unknown_fields=True):
    """Who signs in."""

    email: str
    password: str

    def __repr__(self) -> str:
        return "<Login>"


class Refresh(msgspec.Struct, forbid_unknown_fields=True):
    """The newest refresh token of a session; it works once."""

    refresh_token: str

    def __repr__(self) -> str:
        return "<Refresh>"


class PasswordChange(msgspec.Struct, forbid_unknown_fields=True):
    """The password that is, and the one to be."""

    current_password: str
    new_password: str

    def __repr__(self) -> str:
        return "<PasswordChange>"


class Profile(msgspec.Struct, frozen=True):
    """Somebody signed in; a user sees the messages of `client_ids`."""

    user_id: str
    email: str
    role: Literal["user", "admin", "auditor"]
    client_ids: list[str]


class TokenPair(msgspec.Struct, frozen=True):
    """What lets its bearer in; `expires_in` in seconds, of the access token."""

    access_token: str
    refresh_token: str
    token_type: Literal["bearer"]
    expires_in: int
    user: Profile

    def __repr__(self) -> str:
        return f"<TokenPair of {self.user.user_id}>"


class PasswordChanged(TokenPair, frozen=True, omit_defaults=True):
    """Every session ended; this pair is of a new one. `visible` is there, false, while the table lags."""

    visible: bool = True
