"""People: who may sign in, as what, and whose messages they see."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.domain.users import ROLES, UserEntry
from broker.errors import BrokerError, Conflict, NotFound, ValidationError
from broker.events.control import Committed
from broker.projections import people
from broker.projections.people import Filter
from broker.services.portal import forms, pages
from broker.services.portal.admin import lists
from broker.services.portal.forms import Form
from broker.services.portal.parts import Parts
from broker.services.portal.visitors import Visitor
from broker.web import problems
from broker.web.parameters import Query

PATH: Final = "/admin/users"
_FILTERS: Final = ("search", "role", "status")
_STATUSES: Final = ("all", "active", "disabled")
_NEW: Final = ("email", "password", "role", "clients")
Command = Callable[[Visitor, Form, str], Awaitable[Committed[UserEntry]]]


class Users:
    """The endpoints."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._commands = parts.accounts.commands

    def routes(self) -> list[Route]:
        """All of them."""
        one = f"{PATH}/{{user_id}}"
        return [
            Route(PATH, self.listed, methods=["GET"]),
            Route(PATH, self.create, methods=["POST"]),
            Route(one, self.one, methods=["GET"]),
            *(
                Route(f"{one}/{name}", self._changing(name, fields, command), methods=["POST"])
                for name, fields, command in (
                    ("role", ("role",), self._role),
                    ("clients", ("clients",), self._clients),
                    ("password", ("password",), self._password),
                    ("disable", ("reason",), self._disable),
                )
            ),
        ]

    async def listed(self, request: Request) -> Response:
        """A page of people, by e-mail address."""
        await self._parts.gate(request, "admin")
        return await self._list(request)

    async def create(self, request: Request) -> Response:
        """Somebody new."""
        visitor = await self._parts.gate(request, "admin")
        form = await forms.read(request, visitor.ticket, _NEW)
        try:
            done = await self._commands.create_user(
                form.text("email"), form.text("password"), form.text("role"), _names(form), **visitor.by
            )
        except (ValidationError, Conflict) as error:
            given = {name: form.text(name) for name in _NEW if name != "password"}
            return await self._list(request, problems.of(error), new=given)
        seen = await lists.notice(self._parts, done.positions, "users", "user-created")
        return pages.see(PATH if seen == "later" else f"{PATH}/{done.value.user_id}", seen)

    async def one(self, request: Request) -> Response:
        """One of them, with what can be changed."""
        await self._parts.gate(request, "admin")
        return await self._person(request)

    def _changing(self, name: str, fields: tuple[str, ...], command: Command) -> Any:
        async def change(request: Request) -> Response:
            visitor = await self._parts.gate(request, "admin")
            form = await forms.read(request, visitor.ticket, fields)
            user_id = _user_id(request)
            try:
                done = await command(visitor, form, user_id)
            except (ValidationError, Conflict) as error:
                return await self._person(request, problems.of(error))
            return pages.see(
                f"{PATH}/{user_id}", await lists.notice(self._parts, done.positions, "users", f"user-{name}")
            )

        return change

    async def _role(self, visitor: Visitor, form: Form, user_id: str) -> Committed[UserEntry]:
        return await self._commands.change_role(user_id, form.text("role"), **visitor.by)

    async def _clients(self, visitor: Visitor, form: Form, user_id: str) -> Committed[UserEntry]:
        return await self._commands.change_clients(user_id, _names(form), **visitor.by)

    async def _password(self, visitor: Visitor, form: Form, user_id: str) -> Committed[UserEntry]:
        return await self._commands.change_password(user_id, form.text("password"), **visitor.by)

    async def _disable(self, visitor: Visitor, form: Form, user_id: str) -> Committed[UserEntry]:
        return await self._commands.disable_user(user_id, form.optional("reason"), **visitor.by)

    async def _list(
        self, request: Request, wrong: problems.Problem | None = None, new: dict[str, str] | None = None
    ) -> Response:
        asked = lists.asked(request, _FILTERS)
        found: list[people.Person] = []
        page, errors = lists.empty(), dict[str, str]()
        try:
            query = Query(request, (*_FILTERS, *lists.PAGING, "done"))
            role = query.choice("role", ("all", *ROLES), "all")
            status = query.choice("status", _STATUSES, "all")
            wanted = Filter(
                role=None if role == "all" else role,
                disabled=None if status == "all" else status == "disabled",
                search=query.text("search"),
            )
            found, page = await people.page(
                self._parts.queries.store, wanted, per_page=lists.PER_PAGE, at=lists.place(query)
            )
        except ValidationError as error:
            errors = lists.shown(error)
        return pages.render(
            request,
            "users.html",
            problems.STATUS[wrong.code] if wrong else 400 if errors else 200,
            people=found,
            page=page,
            asked=asked,
            roles=ROLES,
            new=new or dict.fromkeys(_NEW, ""),
            wrong=wrong,
            field_errors=errors | _fields(wrong),
        )

    async def _person(self, request: Request, wrong: problems.Problem | None = None) -> Response:
        person = await people.one(self._parts.queries.store, _user_id(request))
        if person is None:
            raise NotFound
        return pages.render(
            request,
            "user.html",
            problems.STATUS[wrong.code] if wrong else 200,
            person=person,
            roles=ROLES,
            wrong=wrong,
            field_errors=_fields(wrong),
        )


def _fields(wrong: BrokerError | None) -> dict[str, str]:
    if not isinstance(wrong, problems.Problem):
        return {}
    return {("clients" if each.field == "client_ids" else each.field): each.reason for each in wrong.details}


def _names(form: Form) -> list[str]:
    """Clients' names, as people write lists."""
    return [name for name in form.text("clients").replace(",", " ").split() if name]


def _user_id(request: Request) -> str:
    try:
        return str(UUID(request.path_params["user_id"]))
    except ValueError:
        raise NotFound from None
