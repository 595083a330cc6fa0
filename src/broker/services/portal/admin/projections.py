"""The read models: how far they are, and built anew from the history while the present tables serve."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.errors import BrokerError, LogUnavailable, NotFound, StoreUnavailable
from broker.events.archive import storage
from broker.projections import auditing, condition
from broker.projections.auditing import Filter
from broker.projections.base import Projection
from broker.projections.rebuild import background, run
from broker.projections.rebuild.background import Rebuilds, Standing
from broker.projections.rebuild.sources import LogSource
from broker.projections.store import StoreRetry
from broker.services.portal import forms, pages
from broker.services.portal.live import Live, Look, Shown
from broker.services.portal.parts import Parts
from broker.services.portal.visitors import Visitor
from broker.web import problems

PATH: Final = "/admin/projections"
EVERY_SECONDS: Final = 1.0
_REPLAYS: Final = ("ReplayStarted", "ReplayFinished")
_LATEST: Final = 6
_UNDER_WAY: Final = ("running", "switching")

Command = Callable[[Projection, Visitor], Awaitable[str]]


class Projections:
    """The endpoints. What was begun here ends with this process, and can be taken up by another."""

    def __init__(self, parts: Parts) -> None:
        where = storage.opened(parts.settings)
        self._parts = parts
        self._rebuilds = Rebuilds(lambda: LogSource(parts.redis, parts.keys, parts.identity, where))
        self._live = Live(parts, "admin", seconds=EVERY_SECONDS)

    def routes(self) -> list[Route]:
        """All of them."""
        one = f"{PATH}/{{name}}"
        return [
            Route(PATH, self.listed, methods=["GET"]),
            Route(one, self.one, methods=["GET"]),
            Route(f"{one}/live", self.live, methods=["GET"]),
            Route(f"{one}/estimate", self.estimate, methods=["POST"]),
            Route(f"{one}/rebuild", self._doing(self._begin), methods=["POST"]),
            Route(f"{one}/cancel", self._doing(self._cancel), methods=["POST"]),
        ]

    async def listed(self, request: Request) -> Response:
        """How far each read model is, and what holds it up."""
        await self._parts.gate(request, "admin")
        parts = self._parts
        found = await condition.look(parts.queries.store, parts.redis, parts.keys)
        return pages.render(request, "projections.html", projections=found)

    async def one(self, request: Request) -> Response:
        """One of them, with its rebuild or what begins one."""
        await self._parts.gate(request, "admin")
        return await self._page(request, _named(request))

    async def live(self, request: Request) -> Response:
        """How far its rebuild is, as server-sent events, until it has ended."""
        return await self._live(request, request.url.path.removesuffix("/live"), self._following)

    def _following(self, request: Request, _: Visitor) -> Look:
        projection = _named(request)

        async def look() -> Shown:
            now = await self._rebuilds.look(self._parts.queries.store, projection)
            text = pages.fragment("rebuild.html", now=now, live=True)
            return Shown(text, last=now.state not in _UNDER_WAY)

        return look

    async def estimate(self, request: Request) -> Response:
        """How many events and about how long, by filling a trial with some of them; nothing begins."""
        visitor = await self._parts.gate(request, "admin")
        await forms.read(request, visitor.ticket, ())
        projection = _named(request)
        try:
            found = await self._rebuilds.estimate(self._parts.queries.store, projection)
        except BrokerError as error:
            return await self._page(request, projection, wrong=_shown(error))
        return await self._page(request, projection, estimate=found)

    def _doing(self, command: Command) -> Callable[[Request], Awaitable[Response]]:
        async def do(request: Request) -> Response:
            visitor = await self._parts.gate(request, "admin")
            await forms.read(request, visitor.ticket, ())
            projection = _named(request)
            try:
                done = await command(projection, visitor)
            except BrokerError as error:
                return await self._page(request, projection, wrong=_shown(error))
            return pages.see(f"{PATH}/{projection.name}", done)

        return do

    async def _begin(self, projection: Projection, visitor: Visitor) -> str:
        record = background.recorder(self._parts.accounts.registry, **visitor.by)
        await self._rebuilds.begin(self._parts.queries.store, projection, record)
        return ""

    async def _cancel(self, projection: Projection, visitor: Visitor) -> str:
        record = background.recorder(self._parts.accounts.registry, **visitor.by)
        if not await run.cancel(self._parts.queries.store, projection, record):
            raise NotFound(f"No rebuild of {projection.name} runs: it has ended already.")
        return "rebuild-cancelled"

    async def _page(
        self, request: Request, projection: Projection, *, wrong: BrokerError | None = None, **more: Any
    ) -> Response:
        parts, store = self._parts, self._parts.queries.store
        found = await condition.look(store, parts.redis, parts.keys)
        now: Standing = await self._rebuilds.look(store, projection)
        replays = await auditing.page(
            store, Filter(subject=f"projection:{projection.name}", types=_REPLAYS), limit=_LATEST
        )
        return pages.render(
            request,
            "projection.html",
            200 if wrong is None else problems.STATUS.get(wrong.code, 409),
            one=next(each for each in found if each.name == projection.name),
            now=now,
            under_way=now.state in _UNDER_WAY,
            live=False,
            replays=replays.events,
            wrong="" if wrong is None else wrong.detail or wrong.message,
            **{"estimate": None} | more,
        )


def _shown(error: BrokerError) -> BrokerError:
    """What the page itself can say. Raises what makes the whole page wait: the log or the tables are away."""
    if isinstance(error, StoreRetry):
        raise StoreUnavailable(error.detail) from error
    if isinstance(error, StoreUnavailable | LogUnavailable):
        raise error
    return error


def _named(request: Request) -> Projection:
    """Of the address. Raises NotFound."""
    if (found := run.named(request.path_params["name"])) is None:
        raise NotFound
    return found
