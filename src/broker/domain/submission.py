"""What a producer may submit: the rules for numbers, bodies, metadata and names."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from broker.errors import ValidationError

MAX_BODY: Final = 1000
"""Characters (code points), not bytes."""
MAX_METADATA: Final = 4096
"""Bytes of its compact JSON."""
MAX_METADATA_DEPTH: Final = 16
MAX_IDEMPOTENCY_KEY: Final = 255

# [0-9], not \d: the latter takes digits of every script.
_E164 = re.compile(r"\+[1-9][0-9]{6,14}\Z")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")
# C0 and C1 controls but tab, line feed and carriage return; lone surrogates cannot be encoded.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_KEY = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?\Z")


class Submission(msgspec.Struct, frozen=True):
    """One valid message, in plain text. It lives in memory only."""

    sender_number: str
    message_body: str
    metadata: dict[str, Any] | None = None
    idempotency_key: str | None = None

    def __repr__(self) -> str:
        """Nothing of it: a traceback may be logged."""
        return "<Submission>"


def sender_number(value: str, field: str = "sender_number") -> str:
    """An E.164 number: `+`, then 7 to 15 digits, the first not 0 (ITU-T E.164)."""
    if not _E164.match(value):
        raise ValidationError(field, "must be E.164: '+' and 7 to 15 digits, the first not 0")
    return value


def message_body(value: str, field: str = "message_body") -> str:
    """1 to 1000 characters, not only white space, without control characters but tab and line breaks."""
    if not value or len(value) > MAX_BODY:
        raise ValidationError(field, f"must have 1 to {MAX_BODY} characters, has {len(value)}")
    if _FORBIDDEN.search(value):
        raise ValidationError(field, "must not contain control characters other than tab and line breaks")
    if not value.strip():
        raise ValidationError(field, "must not be only white space")
    return value


def metadata(value: dict[str, Any] | None, field: str = "metadata") -> dict[str, Any] | None:
    """An object of at most 4 KB as compact JSON; nothing it holds is read by the broker."""
    if value is None:
        return None
    if _depth(value) > MAX_METADATA_DEPTH:
        raise ValidationError(field, f"must not be nested deeper than {MAX_METADATA_DEPTH} levels")
    try:
        size = len(msgspec.json.encode(value))
    except (UnicodeEncodeError, RecursionError, TypeError, msgspec.MsgspecError):
        raise ValidationError(field, "must be a JSON object of valid Unicode") from None
    if size > MAX_METADATA:
        raise ValidationError(field, f"must be at most {MAX_METADATA} bytes as JSON, is {size}")
    return value


def idempotency_key(value: str | None, field: str = "Idempotency-Key") -> str | None:
    """1 to 255 printable ASCII characters, no space at either end."""
    if value is None:
        return None
    if len(value) > MAX_IDEMPOTENCY_KEY or not _KEY.match(value):
        raise ValidationError(field, f"must be 1 to {MAX_IDEMPOTENCY_KEY} printable ASCII characters")
    return value


def client_name(value: str, field: str = "client_id") -> str:
    """A client's name: 1 to 64 of `a-z 0-9 . _ -`, the first a letter or digit."""
    if not _NAME.match(value):
        raise ValidationError(field, "must be 1 to 64 of a-z 0-9 . _ -, the first a letter or digit")
    return value


def validate(
    number: str,
    body: str,
    extra: dict[str, Any] | None = None,
    key: str | None = None,
    *,
    key_field: str = "Idempotency-Key",
) -> Submission:
    """A valid Submission. Raises ValidationError for the first field that is not."""
    return Submission(
        sender_number(number), message_body(body), metadata(extra), idempotency_key(key, key_field)
    )


def _depth(value: Any) -> int:
    """Nesting of objects and lists, without recursion: hostile input must not reach Python's own limit."""
    deepest, level = 0, [value]
    while level and deepest <= MAX_METADATA_DEPTH:
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        containers = any(isinstance(item, dict | list) for item in level)
        deepest += containers
        level = inner
    return deepest
