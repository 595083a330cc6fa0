"""Signing in and out, and one's own profile: /portal/auth/… and /portal/profile…"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.domain.users import UserEntry
from broker.events.accounts import Accounts
from broker.events.login_throttle import Throttled
from broker.events.sessions import Session, SessionEnded
from broker.events.sign_in import SignInRefused
from broker.projections import visibility
from broker.projections.visibility import ReadModels
from broker.services.server import bearer, exchange, portal_wire
from broker.services.server.bearer import Bearer
from broker.services.server.tokens import LIFETIME, Tokens
from broker.web import body, peer
from broker.web.problems import Problem

MAX_BYTES = 8 * 1024

_login = body.Reader(portal_wire.Login)
_refresh = body.Reader(portal_wire.Refresh)
_password = body.Reader(portal_wire.PasswordChange)


class Portal:
    """The endpoints."""

    def __init__(
        self,
        *,
        admitted: Bearer,
        tokens: Tokens,
        accounts: Accounts,
        models: ReadModels | None,
    ) -> None:
        self._admitted = admitted
        self._tokens = tokens
        self._accounts = accounts
        self._sessions = accounts.sessions
        self._sign_in = accounts.sign_in
        self._models = models

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/portal/auth/login", self.login, methods=["POST"]),
            Route("/portal/auth/refresh", self.refresh, methods=["POST"]),
            Route("/portal/auth/logout", self.logout, methods=["POST"]),
            Route("/portal/profile", self.profile, methods=["GET"]),
            Route("/portal/profile/password", self.password, methods=["POST"]),
        ]

    async def login(self, request: Request) -> Response:
        """A pair of tokens for e-mail address and password."""
        given = await exchange.read(request, _login, MAX_BYTES)
        try:
            session = await self._sign_in(given.email, given.password, peer.address(request.scope))
        except SignInRefused as error:
            raise Problem(
                "unauthorized", error.message, headers={"www-authenticate": 'Bearer realm="broker"'}
            ) from None
        except Throttled as error:
            raise exchange.later(error) from None
        return exchange.answer(self.pair(session))

    async def refresh(self, request: Request) -> Response:
        """The next pair of tokens; the one before is dead."""
        given = await exchange.read(request, _refresh, MAX_BYTES)
        try:
            session = await self._sessions.rotate(given.refresh_token)
        except SessionEnded as error:
            bearer.refuse(error.message)
        return exchange.answer(self.pair(session))

    async def logout(self, request: Request) -> Response:
        """End the session that the access token names."""
        caller = await self._admitted(request.scope)
        await self._accounts.sign_out(caller.session_id, caller.user.user_id)
        return Response(status_code=204)

    async def profile(self, request: Request) -> Response:
        """Who is signed in."""
        caller = await self._admitted(request.scope)
        return exchange.answer(_profile(caller.user))

    async def password(self, request: Request) -> Response:
        """Another password: every session ends, and a new one begins."""
        caller = await self._admitted(request.scope)
        given = await exchange.read(request, _password, MAX_BYTES)
        try:
            session, done = await self._accounts.change_password(
                caller.user, given.current_password, given.new_password, peer.address(request.scope)
            )
        except Throttled as error:
            raise exchange.later(error) from None
        visible = await visibility.wait(self._models, done.positions, "users")
        pair = self.pair(session)
        return exchange.answer(portal_wire.PasswordChanged(**msgspec.structs.asdict(pair), visible=visible))

    def pair(self, session: Session) -> portal_wire.TokenPair:
        """What signing in answers, whichever way it was done."""
        user = session.user
        access = self._tokens.issue(user.user_id, user.role, session.session_id)
        return portal_wire.TokenPair(access, session.refresh_token, "bearer", LIFETIME, _profile(user))


def _profile(user: UserEntry) -> portal_wire.Profile:
    return portal_wire.Profile(user.user_id, user.email, user.role, user.client_ids)  # type: ignore[arg-type]
