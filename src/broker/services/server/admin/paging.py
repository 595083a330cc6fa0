"""Lists that come in pages: how they are asked for, and what every page says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from broker.errors import ValidationError
from broker.projections import keyset, listing
from broker.web.parameters import Query, parameter

PER_PAGE: Final = 50
PARAMETERS: Final = ("page", "per_page", "cursor")
DESCRIBED: Final[list[Mapping[str, Any]]] = [
    parameter(
        "page",
        "Within the first 10,000 rows; not together with a cursor.",
        {"type": "integer", "minimum": 1, "maximum": listing.BOUND, "default": 1},
    ),
    parameter(
        "per_page",
        "Rows a page.",
        {"type": "integer", "minimum": 1, "maximum": listing.MAX_PER_PAGE, "default": PER_PAGE},
    ),
    parameter("cursor", "The `next` of the page before."),
]


class Paged(msgspec.Struct, frozen=True, kw_only=True):
    """Where the rows of a page stand among all that match."""

    total: Annotated[int, Meta(description="Counted up to 10,000.")]
    total_exact: Annotated[bool, Meta(description="False where there are more than were counted.")]
    page: int
    per_page: int
    pages: Annotated[int, Meta(description="How far page numbers go.")]
    next: Annotated[str, Meta(description="As `cursor`, gives the next page.")] | None


def asked(query: Query) -> dict[str, Any]:
    """`per_page` and `at`, as `keyset.page` takes them. Raises ValidationError."""
    per_page = query.number("per_page", PER_PAGE, most=listing.MAX_PER_PAGE)
    cursor = query.text("cursor")
    if cursor is None:
        return {"per_page": per_page, "at": query.number("page", 1, most=listing.BOUND)}
    if query.text("page") is not None:
        raise ValidationError("page", "must not be given together with a cursor, which knows its page")
    return {"per_page": per_page, "at": keyset.cursor(cursor)}


def told(page: keyset.Page) -> dict[str, Any]:
    """The fields of `Paged`."""
    return {name: getattr(page, name) for name in Paged.__struct_fields__}
