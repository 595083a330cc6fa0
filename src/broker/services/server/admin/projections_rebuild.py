"""/admin/projections/{name}/rebuild: a read model built anew while the present one serves."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.errors import Conflict, NotFound, StoreUnavailable
from broker.events.archive import storage
from broker.events.positions import Position
from broker.projections import catalog, visibility
from broker.projections.base import Projection
from broker.projections.rebuild import background, run
from broker.projections.rebuild.background import Rebuilds, Standing
from broker.projections.rebuild.building import RebuildStopped
from broker.projections.rebuild.sources import LogSource
from broker.projections.store import StoreRetry
from broker.services.server import exchange
from broker.services.server.admin.parts import Parts, by
from broker.web import body
from broker.web.openapi import Operation, path_parameter
from broker.web.parameters import Query

PATH: Final = "/admin/projections/{name}/rebuild"
AUDIT: Final = "audit_log"
"""The read model that shows that a rebuild began."""


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """Everything may be left out, the body too."""

    dry_run: Annotated[bool, Meta(description="Only tell how many events, and about how long.")] = False


class Begun(msgspec.Struct, frozen=True):
    """The rebuild runs; GET tells how far it is. `visible`: the audit log shows that it began."""

    rebuild: Standing
    visible: bool


class Cancelled(msgspec.Struct, frozen=True):
    """It ends at its next transaction, if it has not already; the present tables serve on."""

    rebuild: Standing


_wanted = body.Reader(Wanted)


class RebuildProjection:
    """The endpoints."""

    def __init__(self, parts: Parts) -> None:
        where = storage.opened(parts.settings)
        self._parts = parts
        self._rebuilds = Rebuilds(lambda: LogSource(parts.redis, parts.keys, parts.identity, where))

    def routes(self) -> list[Route]:
        """All three."""
        return [
            Route(PATH, self.look, methods=["GET"]),
            Route(PATH, self.begin, methods=["POST"]),
            Route(PATH, self.cancel, methods=["DELETE"]),
        ]

    async def look(self, request: Request) -> Response:
        """How far it is."""
        await self._parts.admins(request.scope)
        projection = _projection(request)
        return exchange.answer(await self._rebuilds.look(self._parts.models.store, projection))

    async def begin(self, request: Request) -> Response:
        """Begin it, take up an interrupted one, or only estimate."""
        caller = await self._parts.admins(request.scope)
        raw = await body.read(request.scope, request.receive, exchange.MAX_BYTES)
        given = Wanted()
        if raw:
            body.media_type(request.scope, (body.JSON,))
            given = _wanted.decode(raw)
        projection = _projection(request)
        store = self._parts.models.store
        heard: list[Position] = []
        record = background.recorder(self._parts.registry, positions=heard.extend, **by(caller))
        try:
            if given.dry_run:
                return exchange.answer(await self._rebuilds.estimate(store, projection))
            await self._rebuilds.begin(store, projection, record)
        except RebuildStopped as error:
            raise Conflict(error.detail) from error
        except StoreRetry as error:
            raise StoreUnavailable(error.detail) from error
        visible = await visibility.wait(self._parts.database, heard[:1], AUDIT)
        return exchange.answer(Begun(await self._rebuilds.look(store, projection), visible), 202)

    async def cancel(self, request: Request) -> Response:
        """End it, wherever it runs."""
        caller = await self._parts.admins(request.scope)
        projection = _projection(request)
        store = self._parts.models.store
        record = background.recorder(self._parts.registry, **by(caller))
        if not await run.cancel(store, projection, record):
            raise NotFound(f"No rebuild of {projection.name} was begun.")
        return exchange.answer(Cancelled(await self._rebuilds.look(store, projection)))


def _projection(request: Request) -> Projection:
    """Of the path. Raises NotFound."""
    Query(request, ())
    name = request.path_params["name"]
    if (found := run.named(name)) is None:
        raise NotFound(f"There is no such read model; there are {', '.join(catalog.names())}.")
    return found


_NAME: Final = [path_parameter("name", f"One of {', '.join(catalog.names())}.")]
OPERATIONS: Final = [
    Operation(
        method="get",
        path=PATH,
        summary="How far a rebuild is, with its rate and the time that is left.",
        answers={200: Standing},
        errors=(400, 401, 403, 404, 503),
        parameters=_NAME,
        bearer=True,
    ),
    Operation(
        method="post",
        path=PATH,
        summary="Build a read model anew from the history, or take up a rebuild that was interrupted.",
        request=Wanted,
        request_required=False,
        answers={200: run.Estimate, 202: Begun},
        errors=(400, 401, 403, 404, 409, 413, 415, 503),
        also=("history_gap", "archive_damaged", "archive_unavailable", "unknown_event"),
        parameters=_NAME,
        bearer=True,
    ),
    Operation(
        method="delete",
        path=PATH,
        summary="End a rebuild; the present tables serve on.",
        answers={200: Cancelled},
        errors=(400, 401, 403, 404, 503),
        parameters=_NAME,
        bearer=True,
    ),
]
