"""What the lists of small tables have in common: filters, pages, and what a changed row waits for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from starlette.requests import Request

from broker.errors import ValidationError
from broker.events.positions import Position
from broker.projections import keyset, listing, visibility
from broker.services.portal.parts import Parts
from broker.web.parameters import Query

PER_PAGE: Final = 50
PAGING: Final = ("page", "cursor")


def asked(request: Request, filters: Sequence[str]) -> dict[str, str]:
    """The filters that were given."""
    given = {name: request.query_params.get(name) for name in filters}
    return {name: value for name, value in given.items() if value}


def place(query: Query) -> int | keyset.Cursor:
    """Where the page begins. Raises ValidationError."""
    cursor = query.text("cursor")
    if cursor is None:
        return query.number("page", 1, most=listing.BOUND)
    if query.text("page") is not None:
        raise ValidationError("page", "must not be given together with a cursor")
    return keyset.cursor(cursor)


def empty() -> keyset.Page:
    """The page of a list whose filter is wrong."""
    return keyset.Page([], 0, True, 1, PER_PAGE, 0, None)


async def notice(parts: Parts, positions: Sequence[Position], projection: str, done: str) -> str:
    """`done`, or that lists show it in a moment; waits, bounded, for them."""
    seen = await visibility.wait(parts.queries, positions, projection)
    return done if seen else "later"


def shown(error: ValidationError) -> dict[str, Any]:
    """What a template says beside the field."""
    return {error.field: error.reason}
