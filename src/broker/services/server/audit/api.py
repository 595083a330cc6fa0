"""The audit API's part of the server's OpenAPI document."""

from __future__ import annotations

from typing import Final

from broker.events import exported_formats
from broker.events.exported import ProvedLine
from broker.services.server.audit import audit, wire
from broker.web.openapi import Media, Operation
from broker.web.parameters import parameter

_NUMBER: Final = {"type": "integer", "minimum": 1}
_HISTORY: Final = ("history_altered", "history_gap", "digest_invalid", "archive_damaged", "unknown_event")
_ARCHIVE: Final = (*_HISTORY, "archive_unavailable")

OPERATIONS: Final = [
    Operation(
        method="get",
        path="/audit/export",
        summary="Events in the form that verifies, streamed; a digest is signed first, and ends it.",
        answers={
            200: (
                Media("application/x-ndjson"),
                Media("text/csv"),
                Media("application/vnd.apache.parquet"),
            )
        },
        errors=(400, 401, 403, 409, 503),
        also=_ARCHIVE,
        parameters=[
            parameter(
                "format",
                "`jsonl` unless given. `parquet` where the server has pyarrow, else a 400; its index is its "
                "end, so it cannot go on `after` an event.",
                {"type": "string", "enum": list(exported_formats.FORMATS)},
            ),
            parameter("from_date", "A day (`2026-01-31`, from its first moment) or a time (RFC 3339)."),
            parameter("to_date", "A day (to its last moment) or a time, which is included."),
            parameter("type", "Event types, separated by commas."),
            parameter("subject", "A message id, or `client:…`, `cert:…`, `user:…`."),
            parameter("actor", "Who did it, as the event names them."),
            parameter("client_id", "Of this client alone."),
            parameter("correlation_id", "Of one conversation."),
            parameter(
                "digest", "To end at this digest: to go on with an export (`X-Export-Digest`).", _NUMBER
            ),
            parameter("after", "To go on after this event, the last that came whole."),
        ],
        bearer=True,
    ),
    Operation(
        method="get",
        path="/audit/digests",
        summary="The signed digests of the history, the first one first.",
        answers={200: (wire.Digests, Media("application/x-ndjson"))},
        errors=(400, 401, 403, 409, 503),
        also=_ARCHIVE,
        parameters=[
            parameter("after", "After this number.", {"type": "integer", "minimum": 0, "default": 0}),
            parameter("limit", "A page.", _NUMBER | {"maximum": audit.MAX_LIMIT, "default": audit.LIMIT}),
            parameter(
                "format",
                "`jsonl`: all, as the verifier takes them.",
                {"type": "string", "enum": ["json", "jsonl"]},
            ),
        ],
        bearer=True,
    ),
    Operation(
        method="post",
        path="/audit/digests",
        summary="Sign a digest of everything up to now.",
        answers={201: wire.SignedDigest},
        errors=(401, 403, 409, 503),
        also=_ARCHIVE,
        bearer=True,
    ),
    Operation(
        method="get",
        path="/audit/proof",
        summary="One event with the proof that a signed digest vouches for it.",
        answers={200: ProvedLine},
        errors=(400, 401, 403, 404, 409, 503),
        also=_ARCHIVE,
        parameters=[parameter("position", "Its id, such as `0:1795311781303-0`.") | {"required": True}],
        bearer=True,
    ),
    Operation(
        method="get",
        path="/audit/verify",
        summary="Check every digest, and link the events of the last of them anew.",
        answers={200: wire.Verified},
        errors=(400, 401, 403, 409, 503),
        also=_ARCHIVE,
        parameters=[
            parameter("digests", "So many.", _NUMBER | {"maximum": audit.MAX_CHECKED, "default": 1}),
        ],
        bearer=True,
    ),
]
