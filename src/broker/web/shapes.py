"""What fields take, as the OpenAPI documents say it; the rules, and their words, are the domain's."""

from __future__ import annotations

from typing import Annotated, Any, Final

from msgspec import Meta

from broker.domain import submission

SenderNumber = Annotated[
    str,
    Meta(
        description="E.164.",
        extra_json_schema={"pattern": "^\\+[1-9][0-9]{6,14}$", "examples": ["+4915200000000"]},
    ),
]
MessageBody = Annotated[
    str,
    Meta(
        description="Not only white space; no control characters but tab and line breaks.",
        extra_json_schema={
            "minLength": 1,
            "maxLength": submission.MAX_BODY,
            "pattern": "^[^\\u0000-\\u0008\\u000b\\u000c\\u000e-\\u001f\\u007f-\\u009f]*$",
            "examples": ["Hello"],
        },
    ),
]
Metadata = Annotated[
    dict[str, Any],
    Meta(description=f"At most {submission.MAX_METADATA} bytes as JSON; kept encrypted, not looked into."),
]
IdempotencyKey = Annotated[
    str,
    Meta(
        extra_json_schema={
            "minLength": 1,
            "maxLength": submission.MAX_IDEMPOTENCY_KEY,
            "pattern": "^[!-~]([ -~]*[!-~])?$",
        }
    ),
]
ClientName = Annotated[str, Meta(extra_json_schema={"pattern": "^[a-z0-9][a-z0-9._-]{0,63}$"})]
MESSAGE_ID: Final = {
    "type": "string",
    "format": "uuid",
    # UUIDv7 (RFC 9562).
    "pattern": "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-7[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}$",
}
MessageId = Annotated[str, Meta(extra_json_schema={name: MESSAGE_ID[name] for name in ("format", "pattern")})]
