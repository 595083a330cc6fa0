"""The gateway's OpenAPI document."""

from __future__ import annotations

import sys
from typing import Any

from broker.services.gateway import batch, messages, parsing, status
from broker.web import body, openapi
from broker.web.openapi import Operation, path_parameter

_ERRORS = (400, 401, 403, 413, 415, 429, 503)
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same key and body give the same answer for 24 hours; another body gives 409.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}


def document() -> dict[str, Any]:
    """What `/openapi.json` serves and `schemas/openapi-gateway.json` holds."""
    return openapi.document(
        "Message broker: gateway",
        "Producers submit messages here with their client certificate. A 503 or a time-out means that it is "
        "not known whether the message was taken: repeat it with the same Idempotency-Key.",
        OPERATIONS,
    )


OPERATIONS = [
    Operation(
        method="post",
        path=messages.PATH,
        summary="Submit a message; it is durable when the answer arrives.",
        request=parsing.Message,
        answers={202: messages.Accepted},
        errors=(*_ERRORS, 409),
        parameters=[_KEY],
    ),
    Operation(
        method="post",
        path="/api/v1/messages/batch",
        summary="Submit up to 1000 messages; 202 when all were taken, else 207, one result each.",
        request=parsing.Batch,
        request_types=(body.JSON, body.NDJSON),
        answers={202: batch.Answer, 207: batch.Answer},
        errors=_ERRORS,
    ),
    Operation(
        method="get",
        path="/api/v1/messages/{message_id}",
        summary="What became of a message of yours.",
        answers={200: status.MessageStatus},
        errors=(400, 401, 403, 404, 503),
        parameters=[path_parameter("message_id", "A UUIDv7, from the answer to the submission.")],
    ),
    *openapi.common("/api/v1/health", "the gateway takes messages"),
]


if __name__ == "__main__":
    sys.stdout.buffer.write(openapi.encode(document()))
