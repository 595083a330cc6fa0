"""Who gets what: every route of gateway and server, for everybody who may come.

One table. A route without a row fails, and so does a row without its route; each cell is a real request over
TLS. Requests with a body are malformed on purpose: 400 says that somebody was let in, and whoever is not has
their 401 or 403 before the body was looked at. A number behind a status is how many messages were shown.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator

import pytest

from broker.events.user_commands import UserCommands
from broker.projections import schema
from broker.services.gateway import api as gateway_api
from broker.services.server import api as server_api
from support import contract, databases, reading
from support.calling import Caller
from support.serving import Answered
from support.waiting import wait_until
from support.world import SYSTEM

# producer: of the client whose message there is; rival: of another client; service: a worker's, a gateway's, an
# internal one; server: its own; revoked, expired: a producer's; reader: sees the producer's messages; other: sees the
# rival's. Where a column stands for several and they differ, the cell would name each.
TABLE = """
gateway                                            nobody  producer rival service server revoked expired reader other auditor admin disabled
GET    /api/v1/health                              200     200      200   200     200    200     200     200    200   200     200   200
GET    /openapi.json                               200     200      200   200     200    200     200     200    200   200     200   200
GET    /metrics                                    401     200      200   200     200    403     403     401    401   401     401   401
POST   /api/v1/messages                            401     400      400   403     403    403     403     401    401   401     401   401
POST   /api/v1/messages/batch                      401     400      400   403     403    403     403     401    401   401     401   401
GET    /api/v1/messages/{message_id}               401     200      404   403     403    403     403     401    401   401     401   401

server                                             nobody  producer rival service server revoked expired reader other auditor admin disabled
GET    /                                           200     200      200   200     200    200     200     200    200   200     200   200
GET    /health                                     200     200      200   200     200    200     200     200    200   200     200   200
GET    /openapi.json                               200     200      200   200     200    200     200     200    200   200     200   200
GET    /docs                                       200     200      200   200     200    200     200     200    200   200     200   200
GET    /docs/{file}                                200     200      200   200     200    200     200     200    200   200     200   200
GET    /crl.pem                                    200     200      200   200     200    200     200     200    200   200     200   200
GET    /crl.der                                    200     200      200   200     200    200     200     200    200   200     200   200
GET    /metrics                                    401     200      200   200     200    403     403     401    401   401     401   401

POST   /internal/messages/register                 401     403      403   400     403    403     403     401    401   401     401   401
POST   /internal/messages/deliver                  401     403      403   400     403    403     403     401    401   401     401   401
POST   /internal/messages/status                   401     403      403   400     403    403     403     401    401   401     401   401
PUT    /internal/messages/{message_id}/status      401     403      403   400     403    403     403     401    401   401     401   401

POST   /portal/auth/login                          400     400      400   400     400    400     400     400    400   400     400   400
POST   /portal/auth/refresh                        400     400      400   400     400    400     400     400    400   400     400   400
GET    /portal/auth/oidc/login                     404     404      404   404     404    404     404     404    404   404     404   404
GET    /portal/auth/oidc/callback                  404     404      404   404     404    404     404     404    404   404     404   404
POST   /portal/auth/logout                         401     401      401   401     401    401     401     204    204   204     204   401
GET    /portal/profile                             401     401      401   401     401    401     401     200    200   200     200   401
POST   /portal/profile/password                    401     401      401   401     401    401     401     400    400   400     400   401
GET    /portal/messages                            401     401      401   401     401    401     401     200:1  200:0 403     200:1 401
GET    /portal/messages/{message_id}               401     401      401   401     401    401     401     200    404   403     200   401

GET    /admin/messages                             401     401      401   401     401    401     401     403    403   403     200:1 401
GET    /admin/stats                                401     401      401   401     401    401     401     403    403   403     200   401
POST   /admin/messages/{message_id}/resend         401     401      401   401     401    401     401     403    403   403     400   401
POST   /admin/messages/resend                      401     401      401   401     401    401     401     403    403   403     400   401
GET    /admin/parked                               401     401      401   401     401    401     401     403    403   403     200   401
POST   /admin/parked/resend                        401     401      401   401     401    401     401     403    403   403     400   401
POST   /admin/parked/discard                       401     401      401   401     401    401     401     403    403   403     400   401
GET    /admin/projections                          401     401      401   401     401    401     401     403    403   403     200   401
GET    /admin/projections/{name}/rebuild           401     401      401   401     401    401     401     403    403   403     200   401
POST   /admin/projections/{name}/rebuild           401     401      401   401     401    401     401     403    403   403     400   401
DELETE /admin/projections/{name}/rebuild           401     401      401   401     401    401     401     403    403   403     404   401
POST   /admin/users/create                         401     401      401   401     401    401     401     403    403   403     400   401
POST   /admin/users                                401     401      401   401     401    401     401     403    403   403     400   401
GET    /admin/users                                401     401      401   401     401    401     401     403    403   403     200   401
GET    /admin/users/{user_id}                      401     401      401   401     401    401     401     403    403   403     404   401
DELETE /admin/users/{user_id}                      401     401      401   401     401    401     401     403    403   403     404   401
PUT    /admin/users/{user_id}/role                 401     401      401   401     401    401     401     403    403   403     400   401
PUT    /admin/users/{user_id}/clients              401     401      401   401     401    401     401     403    403   403     400   401
POST   /admin/users/{user_id}/password             401     401      401   401     401    401     401     403    403   403     400   401
POST   /admin/clients                              401     401      401   401     401    401     401     403    403   403     400   401
GET    /admin/clients                              401     401      401   401     401    401     401     403    403   403     200   401
GET    /admin/clients/{client_id}                  401     401      401   401     401    401     401     403    403   403     200   401
PUT    /admin/clients/{client_id}/route            401     401      401   401     401    401     401     403    403   403     400   401
POST   /admin/clients/{client_id}/erase            401     401      401   401     401    401     401     403    403   403     400   401
POST   /admin/clients/{client_id}/keys/rotate      401     401      401   401     401    401     401     403    403   403     200   401
POST   /admin/certificates/generate                401     401      401   401     401    401     401     403    403   403     400   401
POST   /admin/certificates/renew                   401     401      401   401     401    401     401     403    403   403     400   401
POST   /admin/certificates/revoke                  401     401      401   401     401    401     401     403    403   403     400   401
GET    /admin/certificates                         401     401      401   401     401    401     401     403    403   403     200   401

GET    /audit/events                               401     401      401   401     401    401     401     403    403   200     200   401
GET    /audit/export                               401     401      401   401     401    401     401     403    403   200     200   401
GET    /audit/digests                              401     401      401   401     401    401     401     403    403   200     200   401
POST   /audit/digests                              401     401      401   401     401    401     401     403    403   201     201   401
GET    /audit/proof                                401     401      401   401     401    401     401     403    403   400     400   401
GET    /audit/verify                               401     401      401   401     401    401     401     403    403   200     200   401
"""
COLUMNS = TABLE.split("\n")[1].split()[1:]
UNKNOWN = "01890000-0000-7000-8000-000000000000"
PEOPLE = {
    "reader": ("user", ["demo"]),
    "other": ("user", ["acme"]),
    "auditor": ("auditor", []),
    "admin": ("admin", []),
    "disabled": ("admin", []),
}
Rows = dict[tuple[str, str], list[str]]


def rows(surface: str) -> Rows:
    """Cells by method and path, of one part of the table."""
    found: Rows = {}
    part = ""
    for line in TABLE.strip().splitlines():
        words = line.split()
        if words[1:] == COLUMNS:
            part = words[0]
        elif words and part == surface:
            assert len(words) == len(COLUMNS) + 2, line
            assert (words[0], words[1]) not in found, line
            found[words[0], words[1]] = words[2:]
    return found


def written(found: Rows) -> str:
    """As lines that can be compared, and put into the table."""
    lines = [f"{'':<48}" + " ".join(f"{name:<8}" for name in COLUMNS)]
    for (method, path), cells in found.items():
        lines.append(f"{method:<6} {path:<41}" + " ".join(f"{cell:<8}" for cell in cells))
    return "\n".join(line.rstrip() for line in lines)


class Everybody:
    """All who may come, by the names of the columns, to one surface."""

    def __init__(self, world, server, contexts: dict[str, list], users: dict[str, object]) -> None:
        self._world = world
        self._people = server.role._people
        self._contexts = contexts
        self._users = users

    async def ask(self, who: str, port: int, method: str, path: str, body: bytes | None) -> list[Answered]:
        """A request each; people come with a session of their own every time, as some requests end it."""
        headers = {}
        if who in self._users:
            user = self._users[who]
            session = await self._people.sessions.start(user)
            token = self._people.tokens.issue(user.user_id, user.role, session.session_id)
            headers["authorization"] = f"Bearer {token}"
        return [
            await Caller(port, context).request(method, path, body, headers=headers)
            for context in self._contexts[who]
        ]


async def users(world) -> dict[str, object]:
    commands = UserCommands(world.registry)
    found = {}
    for name, (role, clients) in PEOPLE.items():
        done = await commands.create_user(
            f"{name}@example.com", "a good password", role, clients, actor=SYSTEM
        )
        found[name] = done.value
    await commands.disable_user(found["disabled"].user_id, actor=SYSTEM)
    return found


async def contexts(world, *followers) -> dict[str, list]:
    """TLS contexts by column; the revoked certificate is known to be so everywhere."""
    issued = await world.producer("revoked")
    await world.certificates.revoke_certificate(
        fingerprint=issued.fingerprint, reason="keyCompromise", actor=SYSTEM
    )
    for follower in followers:
        await wait_until(
            lambda trust=follower.trust: (
                (entry := trust.certificate(issued.fingerprint)) and entry.status == "revoked"
            )
        )
    certificate, key, _ = world.pki.expired()
    of = world.contexts
    without = {column: [world.pki.client_context()] for column in COLUMNS}
    return without | {
        "producer": [of["demo"]],
        "rival": [of["acme"]],
        "service": [of["worker"], of["gateway"], of["internal"]],
        "server": [of["server"]],
        "revoked": [of["revoked"]],
        "expired": [world.pki.client_context(certificate, key)],
    }


@pytest.fixture
def url(mariadb) -> AsyncIterator[str]:
    made = databases.create(mariadb)
    schema.migrate(made)
    yield made
    databases.drop(made)


def target(method: str, path: str, message_id: str) -> str:
    """The path of a request: what is read exists, what would be changed does not."""
    names = {
        "file": "docs.js",
        "client_id": "demo",
        "name": "users",
        "message_id": message_id if method == "GET" else UNKNOWN,
    }
    return re.sub(r"\{([^}]+)\}", lambda match: names.get(match[1], UNKNOWN), path)


def cell(path: str, answer: Answered) -> str:
    """The status, and how many messages are shown by what lists them."""
    shown = answer.json if answer.status == 200 and path.endswith("/messages") else {}
    return f"{answer.status}" + (f":{len(shown['messages'])}" if shown else "")


async def walk(everybody: Everybody, port: int, table: Rows, message_id: str) -> Rows:
    """What each of the table's requests is answered."""
    found: Rows = {}
    for method, path in table:
        operation = contract.operation(method, path)
        body = b"{" if operation.request is not None else None
        cells = found[method, path] = []
        for who in COLUMNS:
            answers = await everybody.ask(who, port, method, target(method, path, message_id), body)
            cells.append("/".join(sorted({cell(path, answer) for answer in answers})))
    return found


async def test_every_route_has_a_row(world):
    """Taken from the applications themselves; and each is described."""
    async with world.gateway() as gateway, world.server() as server:
        assert rows("gateway").keys() == contract.routes(gateway.role.app)
        assert rows("server").keys() == contract.routes(server.role.app)
    assert rows("gateway").keys() == contract.described(gateway_api.OPERATIONS)
    assert rows("server").keys() == contract.described(server_api.OPERATIONS)


@pytest.mark.case("TC-M-015", "TC-S-001", "TC-S-002", "TC-S-014", "TC-S-015", "TC-S-016", "TC-S-017")
async def test_everybody_gets_what_the_table_says(world, url):
    """Every cell, by a real request with a real certificate or access token."""
    async with contextlib.AsyncExitStack() as stack:
        opened = await stack.enter_async_context(reading.opened(world, url))
        gateway = await stack.enter_async_context(world.gateway())
        everybody = Everybody(
            world, opened.server, await contexts(world, gateway, opened.server), await users(world)
        )
        answer = await Caller(gateway.port, world.contexts["demo"]).submit()
        await opened.caught_up()
        for surface, port in (("gateway", gateway.port), ("server", opened.server.port)):
            expected = rows(surface)
            found = await walk(everybody, port, expected, answer.json["message_id"])
            assert written(found).splitlines() == written(expected).splitlines()
