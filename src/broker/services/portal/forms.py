"""Forms that pages send: bounded, each field once unless it may come more often, and from our own pages."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from starlette.requests import Request

from broker.errors import ValidationError
from broker.services.portal.tickets import Ticket
from broker.web import body
from broker.web.problems import Problem

MAX_BYTES: Final = 64 * 1024
MAX_FIELDS: Final = 500
CSRF: Final = "csrf"
_KIND: Final = "application/x-www-form-urlencoded"


class StaleForm(Problem):
    """The form was not made for this session."""


class Form:
    """What a form brought."""

    def __init__(self, pairs: Sequence[tuple[str, str]], several: Sequence[str]) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in pairs:
            if name in self._values and name not in several:
                raise ValidationError(name[:64], "must be given once")
            self._values.setdefault(name, []).append(value)

    def text(self, name: str) -> str:
        """A field's text; empty where it is absent."""
        return self._values.get(name, [""])[0]

    def optional(self, name: str) -> str | None:
        """The same without white space around it; None where nothing is left."""
        return self.text(name).strip() or None

    def many(self, name: str) -> list[str]:
        """All values of a field that may come more often."""
        return self._values.get(name, [])

    def number(self, name: str, *, least: int, most: int) -> int:
        """A whole number. Raises ValidationError."""
        value = self.text(name).strip()
        if not (value.isascii() and value.isdigit() and len(value) < 10 and least <= int(value) <= most):
            raise ValidationError(name, f"must be a number from {least} to {most}")
        return int(value)


async def read(
    request: Request, ticket: Ticket | None, known: Sequence[str], several: Sequence[str] = ()
) -> Form:
    """The form of `request`, with these fields, sent by a page that was made for this ticket.

    Raises ValidationError, and Problem 403, 413, 415.
    """
    body.media_type(request.scope, (_KIND,))
    _same_origin(request)
    raw = await body.read(request.scope, request.receive, MAX_BYTES)
    try:
        pairs = parse_qsl(
            raw.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(raw),
            errors="strict",
            max_num_fields=MAX_FIELDS,
        )
    except ValueError:
        raise Problem("bad_request", "The form cannot be read.") from None
    for name, value in pairs:
        if name not in (CSRF, *known, *several):
            raise ValidationError(name[:64], "is not a field of this form")
        if "\x00" in value:
            raise ValidationError(name, "must not contain NUL")
    form = Form(pairs, several)
    if ticket is None or not secrets.compare_digest(form.text(CSRF).encode(), ticket.csrf.encode()):
        raise StaleForm("forbidden", "The form was not made for this session.")
    return form


def _same_origin(request: Request) -> None:
    """Browsers say where a form comes from; what is no browser says nothing, and is told by its word."""
    origin = request.headers.get("origin")
    try:
        here = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    except ValueError:
        here = False
    if not here:
        raise StaleForm("forbidden", "The form comes from another site.")
