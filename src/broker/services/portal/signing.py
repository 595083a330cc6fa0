"""Signing in and out."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.events.accounts import Accounts
from broker.events.login_throttle import Throttled
from broker.events.sign_in import SignInRefused
from broker.services.portal import faults, forms, pages, tickets
from broker.services.portal.visitors import Gate, SignInNeeded
from broker.web import peer
from broker.web.problems import Problem

_FIELDS: Final = ("email", "password", "next")
_WHY: Final = {
    "expired": "You were signed out because nothing happened for a while.",
    "ended": "Your session has ended.",
    "old": "That page was too old. Please sign in again.",
    "out": "You are signed out.",
    "unsent": "You are signed out, so what you sent was not done. Sign in, and do it once more.",
}
_WRONG: Final = {
    "vouched": "The identity provider did not vouch for anybody who may sign in here.",
    "denied": "Nobody was signed in at the identity provider. Try it again, or sign in with your password.",
    "provider": "The identity provider cannot be used now. Try again later, or sign in with your password.",
    "begin": "That sign-in was begun elsewhere, or too long ago. Begin again.",
    "busy": "Too many people sign in at once. Try again in a moment.",
}
_REFUSED: Final = "E-mail address or password is wrong."


class Signing:
    """The endpoints. `single`: there is another way to sign in, too."""

    def __init__(self, gate: Gate, accounts: Accounts, *, single: bool) -> None:
        self._gate = gate
        self._accounts = accounts
        self._single = single

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/login", self.form, methods=["GET"]),
            Route("/login", self.sign_in, methods=["POST"]),
            Route("/logout", self.ask, methods=["GET"]),
            Route("/logout", self.sign_out, methods=["POST"]),
        ]

    async def form(self, request: Request) -> Response:
        """The login page; whoever is signed in already goes on."""
        target = faults.local(request.query_params.get("next", "/"))
        try:
            await self._gate(request)
        except SignInNeeded:
            why = request.query_params.get("why", "")
            return self._page(request, target, said=_WHY.get(why, ""), wrong=_WRONG.get(why, ""))
        return pages.see(target)

    async def sign_in(self, request: Request) -> Response:
        """Check, and go on to where somebody was going."""
        ticket = self._gate.ticket(request)
        try:
            form = await forms.read(request, ticket, _FIELDS)
        except Problem as error:
            if error.code != "forbidden":
                raise
            if ticket is None or ticket.session_id:
                # Perhaps sent from another site, without the cookie: a new one would sign somebody out.
                return pages.see(f"{faults.LOGIN}?why=old")
            return self._page(request, "/", 403, wrong=_WHY["old"])
        target = faults.local(form.text("next"))
        email = form.text("email")
        try:
            session = await self._accounts.sign_in(email, form.text("password"), peer.address(request.scope))
        except SignInRefused:
            return self._page(request, target, 401, email=email, wrong=_REFUSED)
        except Throttled as error:
            wait = max(1, round(error.retry_after))
            wrong = f"Too many attempts. Try again in {pages.took(wait * 1000)}."
            page = self._page(request, target, 429, email=email, wrong=wrong)
            page.headers["retry-after"] = str(wait)
            return page
        self._gate.let_in(request, session)
        return pages.see(target)

    async def ask(self, request: Request) -> Response:
        """For who came by the address: a link must not sign anybody out."""
        await self._gate(request)
        return pages.render(request, "logout.html")

    async def sign_out(self, request: Request) -> Response:
        """End the session."""
        visitor = await self._gate(request)
        await forms.read(request, visitor.ticket, ())
        await self._gate.let_out(request, visitor)
        return pages.see(f"{faults.LOGIN}?why=out")

    def _page(
        self,
        request: Request,
        target: str,
        status: int = 200,
        *,
        email: str = "",
        said: str = "",
        wrong: str = "",
    ) -> Response:
        ticket = self._gate.ticket(request)
        if ticket is None or ticket.session_id:
            ticket = tickets.fresh()
            self._gate.give(request, ticket)
        return pages.render(
            request,
            "login.html",
            status,
            csrf=ticket.csrf,
            next=target,
            email=email,
            said=said,
            wrong=wrong,
            single=self._single,
        )
