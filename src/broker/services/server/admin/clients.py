"""/admin/clients: producers, and where their messages go."""

from __future__ import annotations

import secrets
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker import clock
from broker.domain import clients, submission
from broker.errors import NotFound, ValidationError
from broker.events import key_copies
from broker.events.client_commands import ClientCommands
from broker.events.erasure import Erasure
from broker.projections import holders, visibility
from broker.projections.holders import Client
from broker.services.server import exchange
from broker.services.server.admin import clients_wire, paging
from broker.services.server.admin.parts import Parts, by
from broker.web import body
from broker.web.parameters import Query

PATH: Final = "/admin/clients"
STATUSES: Final = ("all", "active", "erased")
FILTERS: Final = ("status", "search", *paging.PARAMETERS)
SECRET_BYTES: Final = 32

_new = body.Reader(clients_wire.NewClient)
_route = body.Reader(clients_wire.Route)
_erase = body.Reader(clients_wire.Erase)


class Clients:
    """The endpoints."""

    def __init__(self, parts: Parts) -> None:
        self._admins = parts.admins
        self._commands = ClientCommands(parts.registry, parts.keyring)
        copies = key_copies.erasable(
            parts.settings, parts.identity.log_id, inspection=parts.settings.inspection
        )
        self._erasure = Erasure(
            self._commands, parts.registry, parts.redis, parts.keys, parts.reopening, copies=copies
        )
        self._database = parts.database
        self._models = parts.models

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route(PATH, self.register, methods=["POST"]),
            Route(PATH, self.listed, methods=["GET"]),
            Route(f"{PATH}/{{client_id}}", self.one, methods=["GET"]),
            Route(f"{PATH}/{{client_id}}/route", self.route, methods=["PUT"]),
            Route(f"{PATH}/{{client_id}}/erase", self.erase, methods=["POST"]),
        ]

    async def register(self, request: Request) -> Response:
        """A new producer, with encryption keys of its own; a certificate then lets it in."""
        caller = await self._admins(request.scope)
        given = await exchange.read(request, _new)
        done = await self._commands.register_client(given.client_id, given.domain, **by(caller))
        visible = await visibility.wait(self._database, done.positions, "clients")
        answer = clients_wire.Registered(given.client_id, given.domain, visible)
        return exchange.answer(answer, 201, headers={"location": f"{PATH}/{given.client_id}"})

    async def listed(self, request: Request) -> Response:
        """A page of clients."""
        await self._admins(request.scope)
        query = Query(request, FILTERS)
        status = query.choice("status", STATUSES, "all")
        found, page = await holders.clients(
            self._models.store,
            status=None if status == "all" else msgspec.convert(status, holders.ClientStatus),
            search=query.text("search"),
            **paging.asked(query),
        )
        shown = [_shown(client) for client in found]
        return exchange.answer(clients_wire.Clients(clients=shown, **paging.told(page)))

    async def one(self, request: Request) -> Response:
        """One of them."""
        await self._admins(request.scope)
        client_id = client_id_of(request)
        found = await holders.client(self._models.store, client_id)
        if found is None:
            raise NotFound(f"There is no client {client_id}.")
        return exchange.answer(_shown(found))

    async def route(self, request: Request) -> Response:
        """Another route, from the next attempt on."""
        caller = await self._admins(request.scope)
        given = await exchange.read(request, _route)
        secret = None if given.secret is None else clients.signing_secret(given.secret)
        made = secrets.token_bytes(SECRET_BYTES) if given.channel == "webhook" and secret is None else None
        done = await self._commands.change_route(
            client_id_of(request), given.channel, given.target, secret or made, **by(caller)
        )
        visible = await visibility.wait(self._database, done.positions, "clients")
        entry = done.value
        shown = None if made is None else clients.shown_secret(made)
        return exchange.answer(
            clients_wire.Routed(entry.client_id, given.channel, entry.target, shown, visible)
        )

    async def erase(self, request: Request) -> Response:
        """Its keys destroyed: everything it ever sent is unreadable, for good."""
        caller = await self._admins(request.scope)
        client_id = client_id_of(request)
        given = await exchange.read(request, _erase)
        if given.confirm != client_id:
            raise ValidationError("confirm", f"must be {client_id}")
        done = await self._erasure.erase(client_id, given.reason, **by(caller))
        visible = await visibility.wait(self._database, done.positions, "clients")
        return exchange.answer(
            clients_wire.Erased(client_id, done.discarded, done.waiting, done.forgotten, visible)
        )


def client_id_of(request: Request) -> str:
    """The client that the path names. Raises NotFound for what cannot be one."""
    given: str = request.path_params["client_id"]
    try:
        return submission.client_name(given)
    except ValidationError:
        raise NotFound(f"There is no client {given[:64]!r}.") from None


def _shown(client: Client) -> clients_wire.Client:
    held = client.certificate
    return clients_wire.Client(
        client_id=client.client_id,
        domain=client.domain,
        status=msgspec.convert(client.status, holders.ClientStatus),
        channel=None if client.channel is None else msgspec.convert(client.channel, clients_wire.Channel),
        target=client.target,
        registered_at=clock.iso(client.registered_at),
        erased_at=None if client.erased_at is None else clock.iso(client.erased_at),
        erased_reason=client.erased_reason,
        certificate=None
        if held is None
        else clients_wire.HeldCertificate(held.serial, held.fingerprint, clock.iso(held.not_after)),
    )
