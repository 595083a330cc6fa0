"""What is mended by hand, in the server's OpenAPI document."""

from __future__ import annotations

from typing import Final

from broker.services.server.admin import resend_wire as wire
from broker.services.server.admin import statuses
from broker.services.server.reading.api import LISTED
from broker.web.openapi import Operation, path_parameter
from broker.web.parameters import MAX_LENGTH, parameter

# What cannot be done to one of many messages is told of it and is no error of the whole.
_BULK: Final = tuple(status for status in statuses.WRITE if status != 409)

OPERATIONS: Final = [
    Operation(
        method="post",
        path="/admin/messages/{message_id}/resend",
        summary="Send a message again that failed, was discarded or is parked; a delivered one if told to.",
        request=wire.Resend,
        answers={200: wire.Resent},
        errors=(*statuses.WRITE, 404, 410),
        parameters=[path_parameter("message_id", "A UUIDv7.")],
        bearer=True,
    ),
    Operation(
        method="post",
        path="/admin/messages/resend",
        summary="Send again what a filter finds, the newest first, or what is named.",
        request=wire.ResendMany,
        answers={200: wire.Mended},
        errors=_BULK,
        bearer=True,
    ),
    Operation(
        method="get",
        path="/admin/parked",
        summary="Messages that wait for a person, and why.",
        answers={200: wire.Parked},
        errors=statuses.READ,
        parameters=[
            *LISTED,
            parameter(
                "parked_reason", "Parked for this reason.", {"type": "string", "maxLength": MAX_LENGTH}
            ),
        ],
        bearer=True,
    ),
    Operation(
        method="post",
        path="/admin/parked/resend",
        summary="Give parked messages back to the workers, each in the cycle it is in.",
        request=wire.ParkedSelection,
        answers={200: wire.Mended},
        errors=_BULK,
        bearer=True,
    ),
    Operation(
        method="post",
        path="/admin/parked/discard",
        summary="End the cycles of parked messages undelivered.",
        request=wire.Discard,
        answers={200: wire.Mended},
        errors=_BULK,
        bearer=True,
    ),
]
