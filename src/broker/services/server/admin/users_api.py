"""What the OpenAPI document says of /admin/users."""

from __future__ import annotations

from typing import Final

from broker.domain.users import ROLES
from broker.services.server.admin import paging, statuses, users_wire
from broker.services.server.admin.users import STATUSES
from broker.web.openapi import Operation, path_parameter
from broker.web.parameters import MAX_LENGTH, parameter

_ID: Final = path_parameter("user_id", "A UUID.")

OPERATIONS: Final = [
    *(
        Operation(
            method="post",
            path=path,
            summary="Create somebody who may sign in. The e-mail address must be nobody else's.",
            request=users_wire.NewUser,
            answers={201: users_wire.Changed},
            errors=statuses.WRITE,
            bearer=True,
        )
        for path in ("/admin/users/create", "/admin/users")
    ),
    Operation(
        method="get",
        path="/admin/users",
        summary="People, by e-mail address.",
        answers={200: users_wire.Users},
        errors=statuses.READ,
        parameters=[
            parameter("role", "`all` unless given.", {"type": "string", "enum": ["all", *ROLES]}),
            parameter("status", "`all` unless given.", {"type": "string", "enum": list(STATUSES)}),
            parameter("search", "A part of the e-mail address."),
            parameter("client_id", "Who sees the messages of this client."),
            *paging.DESCRIBED,
        ],
        bearer=True,
    ),
    Operation(
        method="get",
        path="/admin/users/{user_id}",
        summary="One of them.",
        answers={200: users_wire.User},
        errors=(401, 403, 404, 503),
        parameters=[_ID],
        bearer=True,
    ),
    Operation(
        method="delete",
        path="/admin/users/{user_id}",
        summary="Disable somebody: their sessions end at once. The last admin stays.",
        answers={200: users_wire.Changed},
        errors=(400, 401, 403, 404, 409, 503),
        parameters=[
            _ID,
            parameter("reason", "Recorded in the history.", {"type": "string", "maxLength": MAX_LENGTH}),
        ],
        bearer=True,
    ),
    Operation(
        method="put",
        path="/admin/users/{user_id}/role",
        summary="Give somebody another role, from their next request on. The last admin stays one.",
        request=users_wire.RoleChange,
        answers={200: users_wire.Changed},
        errors=(*statuses.WRITE, 404),
        parameters=[_ID],
        bearer=True,
    ),
    Operation(
        method="put",
        path="/admin/users/{user_id}/clients",
        summary="Say whose messages somebody sees.",
        request=users_wire.ClientsChange,
        answers={200: users_wire.Changed},
        errors=(*(each for each in statuses.WRITE if each != 409), 404),
        parameters=[_ID],
        bearer=True,
    ),
    Operation(
        method="post",
        path="/admin/users/{user_id}/password",
        summary="Give somebody another password; every session of theirs ends.",
        request=users_wire.PasswordReset,
        answers={200: users_wire.Changed},
        errors=(*(each for each in statuses.WRITE if each != 409), 404),
        parameters=[_ID],
        bearer=True,
    ),
]
