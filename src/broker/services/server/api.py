"""The server's OpenAPI document."""

from __future__ import annotations

import sys
from typing import Any

from broker.services.server import docs, oidc, portal_api, wire
from broker.services.server.admin import api as admin_api
from broker.services.server.audit import api as audit_api
from broker.services.server.reading import api as reading_api
from broker.web import openapi
from broker.web.openapi import Operation, path_parameter

_ERRORS = (400, 401, 403, 409, 413, 415, 503)
_ALSO = ("inspection_only",)


def document() -> dict[str, Any]:
    """What `/openapi.json` serves and `schemas/openapi-server.json` holds."""
    return openapi.document(
        "Message broker: server",
        "The internal API takes client certificates of the roles gateway, worker and internal; "
        "people's take access tokens, which signing in gives.",
        OPERATIONS,
    )


OPERATIONS = [
    *portal_api.OPERATIONS,
    *oidc.OPERATIONS,
    *reading_api.OPERATIONS,
    *admin_api.OPERATIONS,
    *audit_api.OPERATIONS,
    Operation(
        method="post",
        path="/internal/messages/register",
        summary="Queue a message for a client; a known id gives the same answer again.",
        request=wire.Register,
        answers={200: wire.Registered},
        errors=_ERRORS,
        also=_ALSO,
    ),
    Operation(
        method="post",
        path="/internal/messages/deliver",
        summary="Say that one message, or many, reached the recipient.",
        request=(wire.Delivery, wire.Deliveries),
        answers={200: (wire.Delivered, wire.DeliveryResults)},
        errors=(*_ERRORS, 404),
        also=_ALSO,
    ),
    Operation(
        method="put",
        path="/internal/messages/{message_id}/status",
        summary="Say what became of a message.",
        request=wire.StatusUpdate,
        answers={200: wire.StatusAnswer},
        errors=(*_ERRORS, 404),
        also=_ALSO,
        parameters=[path_parameter("message_id", "A UUIDv7.")],
    ),
    Operation(
        method="post",
        path="/internal/messages/status",
        summary="Say what became of a message named in the body.",
        request=wire.MessageStatusUpdate,
        answers={200: wire.StatusAnswer},
        errors=(*_ERRORS, 404),
        also=_ALSO,
    ),
    *openapi.common("/health", "the server works"),
    *docs.OPERATIONS,
    Operation(
        method="get",
        path="/",
        summary="What this is and where to read on.",
        answers={200: wire.Welcome},
        certificate=False,
    ),
]


if __name__ == "__main__":
    sys.stdout.buffer.write(openapi.encode(document()))
