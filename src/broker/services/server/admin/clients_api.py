"""What the OpenAPI document says of /admin/clients."""

from __future__ import annotations

from typing import Final

from broker.services.server.admin import clients_wire, paging, statuses
from broker.services.server.admin.clients import STATUSES
from broker.web.openapi import Operation, path_parameter
from broker.web.parameters import parameter

_ID: Final = path_parameter("client_id", "A client's name.")

OPERATIONS: Final = [
    Operation(
        method="post",
        path="/admin/clients",
        summary="Register a producer, with encryption keys of its own; a certificate then lets it in.",
        request=clients_wire.NewClient,
        answers={201: clients_wire.Registered},
        errors=statuses.WRITE,
        bearer=True,
    ),
    Operation(
        method="get",
        path="/admin/clients",
        summary="Producers, by name.",
        answers={200: clients_wire.Clients},
        errors=statuses.READ,
        parameters=[
            parameter("status", "`all` unless given.", {"type": "string", "enum": list(STATUSES)}),
            parameter("search", "A part of the name."),
            *paging.DESCRIBED,
        ],
        bearer=True,
    ),
    Operation(
        method="get",
        path="/admin/clients/{client_id}",
        summary="One of them.",
        answers={200: clients_wire.Client},
        errors=(401, 403, 404, 503),
        parameters=[_ID],
        bearer=True,
    ),
    Operation(
        method="put",
        path="/admin/clients/{client_id}/route",
        summary="Send a client's messages elsewhere, from the next attempt on.",
        request=clients_wire.Route,
        answers={200: clients_wire.Routed},
        errors=(400, 401, 403, 404, 413, 415, 503),
        parameters=[_ID],
        bearer=True,
    ),
    Operation(
        method="post",
        path="/admin/clients/{client_id}/erase",
        summary="Destroy a client's keys: everything it ever sent is unreadable, for good.",
        request=clients_wire.Erase,
        answers={200: clients_wire.Erased},
        errors=(400, 401, 403, 404, 413, 415, 503),
        parameters=[_ID],
        bearer=True,
    ),
]
