"""One's own account."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.errors import StoreUnavailable, ValidationError
from broker.events.login_throttle import Throttled
from broker.services.portal import forms, pages
from broker.services.portal.parts import Parts
from broker.web import peer

_FIELDS: Final = ("current_password", "new_password", "username")


class Profile:
    """The endpoints."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def routes(self) -> list[Route]:
        """Both."""
        return [
            Route("/profile", self.read, methods=["GET"]),
            Route("/profile/password", self.password, methods=["POST"]),
        ]

    async def read(self, request: Request) -> Response:
        """Who is signed in."""
        await self._parts.gate(request)
        return pages.render(request, "profile.html")

    async def password(self, request: Request) -> Response:
        """Another password: every session ends, and this browser has a new one."""
        visitor = await self._parts.gate(request)
        form = await forms.read(request, visitor.ticket, _FIELDS)
        try:
            session, done = await self._parts.accounts.change_password(
                visitor.user,
                form.text("current_password"),
                form.text("new_password"),
                peer.address(request.scope),
            )
        except ValidationError as error:
            return pages.render(request, "profile.html", 400, field_errors={error.field: error.reason})
        except Throttled as error:
            said = f"was tried too often; try again in {pages.took(error.retry_after * 1000)}"
            return pages.render(request, "profile.html", 429, field_errors={"current_password": said})
        self._parts.gate.let_in(request, session)
        try:
            visible = await self._parts.queries.wait_passed(done.positions[-1], "users")
        except StoreUnavailable:
            visible = False
        return pages.see("/profile", "password" if visible else "password-later")
