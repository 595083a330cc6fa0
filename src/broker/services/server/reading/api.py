"""The read side's part of the server's OpenAPI document."""

from __future__ import annotations

from typing import Final

from broker.projections import auditing, listing
from broker.services.server.reading import audit, messages, stats, wire
from broker.web.openapi import Operation, path_parameter
from broker.web.parameters import MAX_LENGTH, parameter

_DATES: Final = [
    parameter("from_date", "A day (`2026-01-31`, from its first moment) or a time (RFC 3339)."),
    parameter("to_date", "A day (to its last moment) or a time, which is included."),
]
_CURSOR: Final = parameter("cursor", "The `next` of the page before.")
_CLIENT: Final = parameter("client_id", "Of this client alone.", {"type": "string", "maxLength": MAX_LENGTH})
LISTED: Final = [
    *_DATES,
    parameter("search", "An exact sender number, E.164; found by its keyed hash."),
    _CLIENT,
    parameter(
        "page",
        "Within the first 10,000 messages; not together with a cursor.",
        {"type": "integer", "minimum": 1, "maximum": listing.BOUND, "default": 1},
    ),
    parameter(
        "per_page",
        "Messages a page.",
        {"type": "integer", "minimum": 1, "maximum": listing.MAX_PER_PAGE, "default": messages.PER_PAGE},
    ),
    _CURSOR,
]
"""What every list of messages takes."""
_FILTERS: Final = [
    parameter("status", "`all` unless given.", {"type": "string", "enum": ["all", *listing.STATUSES]}),
    *LISTED,
]

OPERATIONS: Final = [
    Operation(
        method="get",
        path="/portal/messages",
        summary="The messages of one's clients, the newest first; an admin's are everybody's.",
        answers={200: wire.Messages},
        errors=(400, 401, 403, 503),
        parameters=_FILTERS,
        bearer=True,
    ),
    Operation(
        method="get",
        path="/portal/messages/{message_id}",
        summary="One message and all that happened to it; decrypted for an admin who asks, on record.",
        answers={200: wire.MessageDetail},
        errors=(400, 401, 403, 404, 410, 503),
        parameters=[
            path_parameter("message_id", "A UUIDv7."),
            parameter(
                "decrypt",
                "Show number and body. Admins only; recorded as `BodyRead` before it is shown.",
                {"type": "string", "enum": ["true", "false"], "default": "false"},
            ),
            parameter("reason", "Recorded with it.", {"type": "string", "maxLength": MAX_LENGTH}),
        ],
        bearer=True,
    ),
    Operation(
        method="get",
        path="/admin/messages",
        summary="The messages of all clients, the newest first.",
        answers={200: wire.Messages},
        errors=(400, 401, 403, 503),
        parameters=_FILTERS,
        bearer=True,
    ),
    Operation(
        method="get",
        path="/admin/stats",
        summary="The system's figures of the last hour, day, week or month.",
        answers={200: wire.Stats},
        errors=(400, 401, 403, 503),
        parameters=[
            parameter("period", "`day` unless given.", {"type": "string", "enum": list(stats.PERIODS)})
        ],
        bearer=True,
    ),
    Operation(
        method="get",
        path="/audit/events",
        summary="The history, the newest first, in exported form.",
        answers={200: wire.AuditEvents},
        errors=(400, 401, 403, 503),
        parameters=[
            *_DATES,
            parameter("type", "Event types, separated by commas."),
            parameter("subject", "A message id, or `client:…`, `cert:…`, `user:…`."),
            parameter("actor", "Who did it, as the event names them."),
            _CLIENT,
            parameter("correlation_id", "Of one conversation."),
            parameter(
                "limit",
                "Events a page.",
                {
                    "type": "integer",
                    "minimum": 1,
                    "maximum": auditing.MAX_LIMIT,
                    "default": audit.LIMIT,
                },
            ),
            _CURSOR,
        ],
        bearer=True,
    ),
]
