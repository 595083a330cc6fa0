"""Query parameters, read strictly.

An unknown one is refused: a filter that is silently ignored shows more than was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from starlette.requests import Request

from broker.domain import submission
from broker.errors import ValidationError

MAX_LENGTH: Final = 512
_CORRELATION = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_FIRST: Final = 0
_LAST: Final = 253_402_300_799_999


class Query:
    """The parameters of one request; each is named once."""

    def __init__(self, given: Request | Mapping[str, str | None], known: Sequence[str]) -> None:
        """Of a query string, or the same as a body gave them: None where it gave nothing."""
        if isinstance(given, Request):
            pairs = given.query_params.multi_items()
        else:
            pairs = [(name, value) for name, value in given.items() if value is not None]
        self._values: dict[str, str] = {}
        for name, value in pairs:
            if name not in known:
                raise ValidationError(name[:64], f"is unknown here; known: {', '.join(known)}")
            if name in self._values:
                raise ValidationError(name, "must be given once")
            if len(value) > MAX_LENGTH or "\x00" in value:
                raise ValidationError(name, f"must be at most {MAX_LENGTH} characters, without NUL")
            if value:
                self._values[name] = value

    def text(self, name: str) -> str | None:
        """Its value; None where it is absent or empty."""
        return self._values.get(name)

    def client(self, name: str = "client_id") -> str | None:
        """A client's name. (A text that no ascii column can hold would be compared without its index.)"""
        value = self._values.get(name)
        return None if value is None else submission.client_name(value, name)

    def correlation(self, name: str = "correlation_id") -> str | None:
        """A correlation id."""
        value = self._values.get(name)
        if value is not None and not _CORRELATION.match(value):
            raise ValidationError(name, "must be 1 to 64 of letters, digits, '.', '_' and '-'")
        return value

    def choice(self, name: str, choices: Sequence[str], default: str) -> str:
        """One of `choices`."""
        value = self._values.get(name, default)
        if value not in choices:
            raise ValidationError(name, f"must be one of {', '.join(choices)}")
        return value

    def number(self, name: str, default: int, *, least: int = 1, most: int) -> int:
        """A whole number from `least` to `most`."""
        value = self._values.get(name, str(default))
        if not (value.isascii() and value.isdigit() and len(value) < 10 and least <= int(value) <= most):
            raise ValidationError(name, f"must be a number from {least} to {most}")
        return int(value)

    def flag(self, name: str) -> bool:
        """`true` or `false`; false where it is absent."""
        return self.choice(name, ("true", "false"), "false") == "true"

    def since(self, name: str) -> int | None:
        """The first millisecond of a day, or a time."""
        return self._time(name, days=0)

    def until(self, name: str) -> int | None:
        """The millisecond after a day, or after a time: what is named is included."""
        return self._time(name, days=1)

    def _time(self, name: str, days: int) -> int | None:
        value = self._values.get(name)
        if value is None:
            return None
        try:
            if len(value) == len("2026-01-31"):
                day = date.fromisoformat(value)
                stamp = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=days)
                found = round(stamp.timestamp() * 1000)
            else:
                # An unescaped `+` of an offset arrives as a space.
                stamp = datetime.fromisoformat(value.replace(" ", "+"))
                stamp = stamp if stamp.tzinfo is not None else stamp.replace(tzinfo=UTC)
                found = round(stamp.timestamp() * 1000) + days
        except (ValueError, OverflowError):
            found = _FIRST - 1
        if not _FIRST <= found <= _LAST:
            raise ValidationError(name, "must be a day as 2026-01-31 or a time as 2026-01-31T12:00:00Z")
        return found


def parameter(name: str, description: str, schema: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A query parameter as the OpenAPI document has it."""
    return {
        "name": name,
        "in": "query",
        "required": False,
        # Forms send what nobody filled in as well: it counts as absent.
        "allowEmptyValue": True,
        "description": description,
        "schema": dict(schema or {"type": "string"}),
    }
