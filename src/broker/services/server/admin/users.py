"""/admin/users: who may sign in, as what, and whose messages they see."""

from __future__ import annotations

from typing import Final
from uuid import UUID

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker import clock
from broker.domain.users import ROLES, UserEntry
from broker.errors import NotFound
from broker.events.control import Committed
from broker.events.user_commands import UserCommands
from broker.projections import people, visibility
from broker.projections.people import Filter, Person
from broker.services.server import exchange
from broker.services.server.admin import paging, users_wire
from broker.services.server.admin.parts import Parts, by
from broker.web import body
from broker.web.parameters import Query

PATH: Final = "/admin/users"
STATUSES: Final = ("all", "active", "disabled")
FILTERS: Final = ("role", "status", "search", "client_id", *paging.PARAMETERS)

_new = body.Reader(users_wire.NewUser)
_role = body.Reader(users_wire.RoleChange)
_clients = body.Reader(users_wire.ClientsChange)
_password = body.Reader(users_wire.PasswordReset)


class Users:
    """The endpoints. A change bites at the next request of whom it concerns; answers wait for the lists."""

    def __init__(self, parts: Parts) -> None:
        self._admins = parts.admins
        self._commands = UserCommands(parts.registry)
        self._database = parts.database
        self._models = parts.models

    def routes(self) -> list[Route]:
        """All of them."""
        one = f"{PATH}/{{user_id}}"
        return [
            Route(PATH, self.create, methods=["POST"]),
            Route(f"{PATH}/create", self.create, methods=["POST"]),
            Route(PATH, self.listed, methods=["GET"]),
            Route(one, self.one, methods=["GET"]),
            Route(one, self.disable, methods=["DELETE"]),
            Route(f"{one}/role", self.role, methods=["PUT"]),
            Route(f"{one}/clients", self.clients, methods=["PUT"]),
            Route(f"{one}/password", self.password, methods=["POST"]),
        ]

    async def create(self, request: Request) -> Response:
        """Somebody new."""
        caller = await self._admins(request.scope)
        given = await exchange.read(request, _new)
        done = await self._commands.create_user(
            given.email, given.password, given.role, given.client_ids, **by(caller)
        )
        location = {"location": f"{PATH}/{done.value.user_id}"}
        return await self._changed(done, 201, headers=location)

    async def listed(self, request: Request) -> Response:
        """A page of people."""
        await self._admins(request.scope)
        query = Query(request, FILTERS)
        role = query.choice("role", ("all", *ROLES), "all")
        status = query.choice("status", STATUSES, "all")
        wanted = Filter(
            role=None if role == "all" else role,
            disabled=None if status == "all" else status == "disabled",
            search=query.text("search"),
            client_id=query.client(),
        )
        found, page = await people.page(self._models.store, wanted, **paging.asked(query))
        return exchange.answer(
            users_wire.Users(users=[_shown(person) for person in found], **paging.told(page))
        )

    async def one(self, request: Request) -> Response:
        """One of them."""
        await self._admins(request.scope)
        user_id = _user_id(request)
        found = await people.one(self._models.store, user_id)
        if found is None:
            raise NotFound(f"There is no user {user_id}.")
        return exchange.answer(_shown(found))

    async def disable(self, request: Request) -> Response:
        """Their sessions end at once, and they sign in no more; the history keeps them."""
        caller = await self._admins(request.scope)
        reason = Query(request, ("reason",)).text("reason")
        return await self._changed(await self._commands.disable_user(_user_id(request), reason, **by(caller)))

    async def role(self, request: Request) -> Response:
        """Another role, from their next request on."""
        caller = await self._admins(request.scope)
        given = await exchange.read(request, _role)
        return await self._changed(
            await self._commands.change_role(_user_id(request), given.role, **by(caller))
        )

    async def clients(self, request: Request) -> Response:
        """Other clients."""
        caller = await self._admins(request.scope)
        given = await exchange.read(request, _clients)
        return await self._changed(
            await self._commands.change_clients(_user_id(request), given.client_ids, **by(caller))
        )

    async def password(self, request: Request) -> Response:
        """Another password; every session of theirs ends."""
        caller = await self._admins(request.scope)
        given = await exchange.read(request, _password)
        return await self._changed(
            await self._commands.change_password(_user_id(request), given.password, **by(caller))
        )

    async def _changed(
        self, done: Committed[UserEntry], status: int = 200, *, headers: dict[str, str] | None = None
    ) -> Response:
        visible = await visibility.wait(self._database, done.positions, "users")
        entry = done.value
        changed = users_wire.Changed(
            user_id=entry.user_id,
            email=entry.email,
            role=msgspec.convert(entry.role, users_wire.Role),
            client_ids=entry.client_ids,
            disabled=entry.disabled,
            visible=visible,
        )
        return exchange.answer(changed, status, headers=headers)


def _user_id(request: Request) -> str:
    """Raises NotFound for what cannot be one."""
    given: str = request.path_params["user_id"]
    try:
        return str(UUID(given))
    except ValueError:
        raise NotFound(f"There is no user {given[:64]!r}.") from None


def _shown(person: Person) -> users_wire.User:
    return users_wire.User(
        user_id=person.user_id,
        email=person.email,
        role=msgspec.convert(person.role, users_wire.Role),
        client_ids=person.client_ids,
        disabled=person.disabled,
        created_at=clock.iso(person.created_at),
        disabled_at=None if person.disabled_at is None else clock.iso(person.disabled_at),
        password_changed_at=clock.iso(person.password_at),
    )
