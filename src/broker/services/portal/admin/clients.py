"""Clients: producers, and where their messages go."""

from __future__ import annotations

import secrets
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.domain import clients, submission
from broker.domain.clients import CHANNELS, ClientEntry
from broker.errors import BrokerError, Conflict, NotFound, ValidationError
from broker.events.client_commands import ClientCommands
from broker.events.control import client_field
from broker.projections import holders
from broker.services.portal import forms, pages
from broker.services.portal.admin import lists
from broker.services.portal.forms import Form
from broker.services.portal.parts import Parts
from broker.web import problems
from broker.web.parameters import Query

PATH: Final = "/admin/clients"
SECRET_BYTES: Final = 32
_FILTERS: Final = ("search", "status")
_STATUSES: Final = ("all", "active", "erased")
_NEW: Final = ("client_id", "domain")
_ROUTE: Final = ("channel", "target", "signing", "secret")


class Clients:
    """The endpoints."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._registry = parts.accounts.registry
        self._commands = ClientCommands(self._registry, parts.keyring)

    def routes(self) -> list[Route]:
        """All of them."""
        one = f"{PATH}/{{client_id}}"
        return [
            Route(PATH, self.listed, methods=["GET"]),
            Route(PATH, self.register, methods=["POST"]),
            Route(one, self.one, methods=["GET"]),
            Route(f"{one}/route", self.route, methods=["POST"]),
        ]

    async def listed(self, request: Request) -> Response:
        """A page of clients, by name."""
        await self._parts.gate(request, "admin")
        return await self._list(request)

    async def register(self, request: Request) -> Response:
        """A new producer, with encryption keys of its own; a certificate then lets it in."""
        visitor = await self._parts.gate(request, "admin")
        form = await forms.read(request, visitor.ticket, _NEW)
        name = form.text("client_id").strip()
        try:
            done = await self._commands.register_client(name, form.optional("domain"), **visitor.by)
        except (ValidationError, Conflict) as error:
            return await self._list(request, error, new={each: form.text(each) for each in _NEW})
        seen = await lists.notice(self._parts, done.positions, "clients", "client-registered")
        return pages.see(PATH if seen == "later" else f"{PATH}/{name}", seen)

    async def one(self, request: Request) -> Response:
        """One of them, with its route."""
        await self._parts.gate(request, "admin")
        return await self._client(request)

    async def route(self, request: Request) -> Response:
        """Another route, from the next attempt on; a signing secret that is made for it is shown once."""
        visitor = await self._parts.gate(request, "admin")
        form = await forms.read(request, visitor.ticket, _ROUTE)
        client_id, channel, target = _named(request), form.text("channel"), form.optional("target")
        try:
            secret, made = await self._secret(form, client_id, channel)
            done = await self._commands.change_route(client_id, channel, target, secret, **visitor.by)
        except (ValidationError, NotFound) as error:
            given = {"channel": channel, "target": form.text("target"), "signing": form.text("signing")}
            return await self._client(request, error, given)
        seen = await lists.notice(self._parts, done.positions, "clients", "client-routed")
        if made is None:
            return pages.see(f"{PATH}/{client_id}", seen)
        return pages.render(
            request, "routed.html", client_id=client_id, target=target, secret=clients.shown_secret(made)
        )

    async def _secret(self, form: Form, client_id: str, channel: str) -> tuple[bytes | None, bytes | None]:
        """What signs to a webhook, and the same once more where it was made just now."""
        if channel != "webhook":
            return None, None
        match form.text("signing"):
            case "given":
                return clients.signing_secret(form.text("secret").strip()), None
            case "keep":
                entry = await self._registry.read(client_field(client_id), ClientEntry)
                if entry is None or entry.sealed_secret is None:
                    raise ValidationError("secret", "there is none yet that could stay")
                return self._parts.sealer.unseal_secret(client_id, entry.sealed_secret), None
            case _:
                made = secrets.token_bytes(SECRET_BYTES)
                return made, made

    async def _list(
        self, request: Request, wrong: BrokerError | None = None, new: dict[str, str] | None = None
    ) -> Response:
        found: list[holders.Client] = []
        page, errors = lists.empty(), dict[str, str]()
        try:
            query = Query(request, (*_FILTERS, *lists.PAGING, "done"))
            status = query.choice("status", _STATUSES, "all")
            found, page = await holders.clients(
                self._parts.queries.store,
                status=None if status == "all" else msgspec.convert(status, holders.ClientStatus),
                search=query.text("search"),
                per_page=lists.PER_PAGE,
                at=lists.place(query),
            )
        except ValidationError as error:
            errors = lists.shown(error)
        return pages.render(
            request,
            "clients.html",
            _status(wrong) if wrong else 400 if errors else 200,
            clients=found,
            page=page,
            asked=lists.asked(request, _FILTERS),
            statuses=_STATUSES,
            default=self._parts.settings.default_channel,
            new=new or dict.fromkeys(_NEW, ""),
            **_said(wrong, errors),
        )

    async def _client(
        self, request: Request, wrong: BrokerError | None = None, given: dict[str, Any] | None = None
    ) -> Response:
        found = await holders.client(self._parts.queries.store, _named(request))
        if found is None:
            raise NotFound
        now = {
            "channel": found.channel or self._parts.settings.default_channel,
            "target": found.target or "",
            "signing": "keep" if found.channel == "webhook" else "new",
        }
        return pages.render(
            request,
            "client.html",
            _status(wrong) if wrong else 200,
            client=found,
            default=self._parts.settings.default_channel,
            channels=CHANNELS,
            route=given or now,
            **_said(wrong, {}),
        )


def _said(wrong: BrokerError | None, errors: dict[str, str]) -> dict[str, Any]:
    """What a template says: beside a field, or above."""
    beside = errors | (lists.shown(wrong) if isinstance(wrong, ValidationError) else {})
    said = "" if wrong is None or isinstance(wrong, ValidationError) else wrong.detail or wrong.message
    return {"wrong": said, "field_errors": beside}


def _status(wrong: BrokerError) -> int:
    return problems.STATUS.get(wrong.code, 500)


def _named(request: Request) -> str:
    """Of the address. Raises NotFound for what cannot be a client."""
    try:
        return submission.client_name(request.path_params["client_id"])
    except ValidationError:
        raise NotFound from None
