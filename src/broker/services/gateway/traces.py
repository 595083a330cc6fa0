"""The span of a submission: the first of its message's trace, linked to the producer's own."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from broker import tracing

Headers = Mapping[bytes, bytes]


def submitted(
    message_id: str, seconds: float, correlation_id: str | None, headers: Headers, *, again: bool = False
) -> None:
    """A message was answered with 202 (`again`: as it had been before); `message_id` in hex."""
    key = f"{tracing.SUBMIT} {secrets.token_hex(8)}" if again else tracing.SUBMIT
    tracing.record(
        bytes.fromhex(message_id),
        "submit again" if again else "submit",
        tracing.ago(seconds),
        key=key,
        parent=tracing.SUBMIT if again else None,
        kind="server",
        link=tracing.given(headers.get(b"traceparent")),
        correlation_id=correlation_id,
    )


def batch(results: Sequence[Any], seconds: float, correlation_id: str | None, headers: Headers) -> None:
    """Every message of a batch that was taken."""
    for one in results:
        if (message_id := getattr(one, "message_id", None)) is not None:
            submitted(message_id.replace("-", ""), seconds, correlation_id, headers, again=one.replayed)
