"""POST /admin/clients/{client_id}/keys/rotate: fresh keys for a client; the others are for a shell."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.events.key_rotation import KeyRotation
from broker.projections import visibility
from broker.services.server import exchange
from broker.services.server.admin.clients import PATH, client_id_of
from broker.services.server.admin.parts import Parts, by
from broker.web.openapi import Operation, path_parameter


class KeysRotated(msgspec.Struct, frozen=True, omit_defaults=True):
    """What older keys sealed stays readable; numbers are found under every key."""

    client_id: str
    key_number: Annotated[int, Meta(description="Messages are sealed with this one from now on.")]
    visible: bool = True


class RotateKeys:
    """The endpoint."""

    def __init__(self, parts: Parts) -> None:
        settings = parts.settings
        self._parts = parts
        self._rotation = KeyRotation(
            parts.redis,
            parts.keys.control,
            parts.registry,
            parts.keyring,
            proof_seconds=settings.trust_max_age + settings.trust_poll,
        )

    def routes(self) -> list[Route]:
        """The one."""
        return [Route(f"{PATH}/{{client_id}}/keys/rotate", self.rotate, methods=["POST"])]

    async def rotate(self, request: Request) -> Response:
        """Add a key, wait until every process has it, and use it."""
        caller = await self._parts.admins(request.scope)
        client_id = client_id_of(request)
        done = (await self._rotation.clients([client_id], **by(caller)))[client_id]
        visible = await visibility.wait(self._parts.database, done.positions, "clients")
        return exchange.answer(KeysRotated(client_id, done.value, visible))


OPERATIONS: Final = [
    Operation(
        method="post",
        path=f"{PATH}/{{client_id}}/keys/rotate",
        summary="Seal a client's messages with a fresh key; takes as long as every process needs to load it.",
        answers={200: KeysRotated},
        errors=(401, 403, 404, 503),
        parameters=[path_parameter("client_id", "The client's name.")],
        bearer=True,
    )
]
