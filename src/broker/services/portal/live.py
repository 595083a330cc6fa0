"""Parts of pages that update themselves, by server-sent events, while their reader's session holds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from broker import lifecycle
from broker.errors import BrokerError
from broker.services.portal import pages
from broker.services.portal.parts import Parts
from broker.services.portal.visitors import SignInNeeded, Visitor
from broker.web.problems import Problem

MAX_WATCHING: Final = 100
"""Streams of one kind of part at once."""
_AWAY: Final = "away"
_ENDED: Final = "event: ended\ndata: -\n\n"


class Shown(msgspec.Struct, frozen=True):
    """A part of a page as it is now; `last`: it changes no more."""

    text: str
    last: bool = False


Look = Callable[[], Awaitable[Shown]]
Begin = Callable[[Request, Visitor], Look]


class Live:
    """Streams of one kind of part, every `seconds`, for people of these roles."""

    def __init__(self, parts: Parts, *roles: str, seconds: float) -> None:
        self._gate = parts.gate
        self._stopping = parts.stopping
        self._roles = roles
        self._seconds = seconds
        self._watching = 0

    async def __call__(self, request: Request, page: str, begin: Begin) -> Response:
        """What `begin` says to look at, asked once its reader is let in; they sign in again for `page`."""
        try:
            visitor = await self._gate(request, *self._roles)
        except SignInNeeded:
            # A stream cannot lead anywhere: its last word is a link.
            return _stream(_farewell(page))
        if self._watching >= MAX_WATCHING:
            raise Problem("overloaded", "Too many people watch this page at once.")
        return _stream(self._events(visitor, begin(request, visitor)))

    async def _events(self, visitor: Visitor, look: Look) -> AsyncIterator[str]:
        self._watching += 1
        try:
            while not self._stopping.is_set():
                try:
                    if not await self._gate.holds(visitor):
                        # The browser comes again by itself, perhaps with a newer ticket from another page.
                        return
                    now = await look()
                except BrokerError as error:
                    # What is shown stays; a script tells beside it why nothing new comes.
                    yield _event(error.message, _AWAY)
                else:
                    yield _event(now.text)
                    if now.last:
                        yield _ENDED
                        return
                await lifecycle.wait_for(self._stopping, self._seconds)
        finally:
            self._watching -= 1


async def _farewell(page: str) -> AsyncIterator[str]:
    yield _event(pages.fragment("signed_out.html", next=page))
    yield _ENDED


def _event(text: str, kind: str = "") -> str:
    named = f"event: {kind}\n" if kind else ""
    return named + "".join(f"data: {line}\n" for line in text.splitlines()) + "\n"


def _stream(events: AsyncIterator[str]) -> Response:
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(events, headers=headers, media_type="text/event-stream")
