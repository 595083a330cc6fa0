"""Who asks for a page: looked up at every request, so that signing out and disabling bite at once."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from starlette.requests import Request

from broker import clock, telemetry
from broker.domain.users import ROLES, UserEntry
from broker.errors import BrokerError
from broker.events.accounts import Accounts
from broker.events.sessions import Session, SessionEnded
from broker.services.portal import tickets
from broker.services.portal.tickets import Ticket, Tickets
from broker.web.problems import Problem

VISITOR: Final = "portal_visitor"
SET_COOKIE: Final = "portal_cookie"
LIVE: Final = "live"
"""The parameter of requests that a page makes by itself: they keep no session alive."""
_RENEWED_AFTER: Final = 20
"""A ticket is written anew once this part of its time has passed."""


class SignInNeeded(BrokerError):
    """Sign in first."""

    code = "unauthorized"

    def __init__(self, why: str = "") -> None:
        self.why = why
        super().__init__()


class Visitor(msgspec.Struct, frozen=True):
    """Somebody signed in, as the registry knows them now."""

    user: UserEntry
    ticket: Ticket

    @property
    def actor(self) -> str:
        """As events name them."""
        return f"user:{self.user.user_id}"

    @property
    def by(self) -> dict[str, Any]:
        """Who does it, and in which conversation, as commands take it."""
        return {"actor": self.actor, "correlation_id": telemetry.correlation.get()}

    @property
    def clients(self) -> tuple[str, ...] | None:
        """The clients whose messages they may see; None: all."""
        return None if self.user.role == "admin" else tuple(self.user.client_ids)


class Gate:
    """Lets people in. After `idle` seconds without a request a session ends."""

    def __init__(self, accounts: Accounts, cookies: Tickets, *, idle: float) -> None:
        self._accounts = accounts
        self._cookies = cookies
        self._idle_ms = round(idle * 1000)

    async def __call__(self, request: Request, *roles: str) -> Visitor:
        """The visitor, of one of these roles if any is named.

        Raises SignInNeeded, Problem 403, LogUnavailable.
        """
        ticket = self.ticket(request)
        if ticket is None or not ticket.session_id:
            raise SignInNeeded
        now = clock.now_ms()
        if now - ticket.seen_ms > self._idle_ms:
            await self._end(ticket)
            raise SignInNeeded("expired")
        try:
            user = await self._accounts.sessions.user(ticket.session_id)
        except SessionEnded:
            raise SignInNeeded("ended") from None
        visitor = Visitor(user, ticket)
        request.scope[VISITOR] = visitor
        if LIVE not in request.query_params and now - ticket.seen_ms > self._idle_ms // _RENEWED_AFTER:
            self.give(request, msgspec.structs.replace(ticket, seen_ms=now))
        if user.role not in (roles or ROLES):
            raise Problem("forbidden", f"This page is not for people of the role {user.role}.")
        return visitor

    async def holds(self, visitor: Visitor) -> bool:
        """Whether somebody let in a while ago still would be, with the same role and the same ticket."""
        if clock.now_ms() - visitor.ticket.seen_ms > self._idle_ms:
            return False
        try:
            user = await self._accounts.sessions.user(visitor.ticket.session_id)
        except SessionEnded:
            return False
        return user.role == visitor.user.role

    def ticket(self, request: Request) -> Ticket | None:
        """The browser's ticket, whatever it is good for."""
        return self._cookies.read(request.cookies)

    def give(self, request: Request, ticket: Ticket) -> None:
        """Have the answer to `request` set this ticket."""
        request.scope[SET_COOKIE] = self._cookies.header(ticket)

    def let_in(self, request: Request, session: Session) -> None:
        """Have the answer begin this session in the browser."""
        self.give(request, tickets.fresh(session.session_id))

    async def let_out(self, request: Request, visitor: Visitor) -> None:
        """End the visitor's session, and have the answer say so."""
        await self._accounts.sign_out(visitor.ticket.session_id, visitor.user.user_id)
        del request.scope[VISITOR]
        self.give(request, tickets.fresh())

    async def _end(self, ticket: Ticket) -> None:
        """A session whose time is over is over for whoever copied its cookie, too."""
        try:
            user = await self._accounts.sessions.user(ticket.session_id)
        except SessionEnded:
            return
        await self._accounts.sessions.end(ticket.session_id, user.user_id)
