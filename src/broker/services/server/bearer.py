"""Who a request comes from, by its access token: signature, session and user are looked at every time."""

from __future__ import annotations

from collections.abc import Collection
from typing import NoReturn

import msgspec
from starlette.types import Scope

from broker.domain.users import ROLES, UserEntry
from broker.events.sessions import SessionEnded, Sessions
from broker.services.server.tokens import TokenRefused, Tokens
from broker.web.problems import Problem


class Caller(msgspec.Struct, frozen=True):
    """Somebody signed in, as the registry knows them now."""

    user: UserEntry
    session_id: str

    @property
    def actor(self) -> str:
        """As events name them."""
        return f"user:{self.user.user_id}"


class Bearer:
    """Lets people of some roles in. Asked at every request: signing out and disabling bite at once."""

    def __init__(self, tokens: Tokens, sessions: Sessions, roles: Collection[str] = ROLES) -> None:
        self._tokens = tokens
        self._sessions = sessions
        self._roles = frozenset(roles)

    def only(self, *roles: str) -> Bearer:
        """The same, for these roles."""
        return Bearer(self._tokens, self._sessions, roles)

    async def __call__(self, scope: Scope) -> Caller:
        """The caller. Raises Problem 401 or 403, LogUnavailable."""
        token = _token(scope)
        try:
            claims = self._tokens.verify(token)
            user = await self._sessions.user(claims.sid)
        except (TokenRefused, SessionEnded) as error:
            refuse(str(error))
        if user.user_id != claims.sub:
            refuse("The access token is not valid.")
        # What the token says of the role may be half an hour old; the registry decides.
        if user.role not in self._roles:
            raise Problem("forbidden", f"A user of the role {user.role} may not do this.")
        return Caller(user, claims.sid)


def refuse(reason: str) -> NoReturn:
    """Raise the 401 for a token that is not, or no longer, good."""
    headers = {"www-authenticate": 'Bearer realm="broker", error="invalid_token"'}
    raise Problem("unauthorized", reason, headers=headers)


def _token(scope: Scope) -> str:
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    if not given:
        raise Problem(
            "unauthorized",
            "This needs an access token.",
            headers={"www-authenticate": 'Bearer realm="broker"'},
        )
    scheme, _, token = given[0].decode("latin-1").partition(" ")
    if len(given) > 1 or scheme.lower() != "bearer":
        refuse("The authorization must be one bearer token.")
    return str(token.strip(" "))
