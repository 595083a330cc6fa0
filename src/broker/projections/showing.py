"""How lists of messages are asked for and shown; numbers need the clients' keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Protocol

from broker import clock
from broker.domain import ids, submission
from broker.errors import KeyErased, KeyUnavailable, Undecryptable, ValidationError
from broker.events.sealing import Plain, Sealer
from broker.events.trust import Trust
from broker.projections import listing
from broker.projections.listing import Cursor, Filter
from broker.projections.queries import Listed

_MASKED_FROM, _MASKED_TO = 3, 2
_TIMES: Final = ("queued_at", "delivered_at", "failed_at", "next_attempt_at")
ENCRYPTED: Final = "[encrypted]"


class Asked(Protocol):
    """What was asked for, by parameters' names; each method raises ValidationError."""

    def text(self, name: str) -> str | None: ...

    def client(self, name: str = "client_id") -> str | None: ...

    def number(self, name: str, default: int, *, least: int = 1, most: int) -> int: ...

    def since(self, name: str) -> int | None: ...

    def until(self, name: str) -> int | None: ...


class Showing:
    """Shows the messages of clients whose keys `trust` has."""

    def __init__(self, sealer: Sealer, trust: Trust) -> None:
        self._sealer = sealer
        self._trust = trust

    def filtered(self, query: Asked, clients: tuple[str, ...] | None) -> Filter:
        """What `client_id`, `from_date`, `to_date` and `search` ask for, among the messages of `clients`."""
        if (chosen := query.client()) is not None:
            # Another's client has no messages for this reader.
            clients = (chosen,) if clients is None or chosen in clients else ()
        return Filter(
            clients,
            None,
            query.since("from_date"),
            query.until("to_date"),
            self._hashes(query.text("search"), clients),
        )

    def message(self, listed: Listed, sealed: bytes) -> dict[str, Any]:
        """The fields of a message as it is listed, its number masked and its body not shown."""
        return fields(listed, self._number(listed, sealed), ENCRYPTED)

    def _hashes(self, number: str | None, clients: Iterable[str] | None) -> tuple[bytes, ...] | None:
        """The number under every key of the clients concerned.

        Raises ValidationError, and KeyUnavailable rather than leave a client out unsaid.
        """
        if number is None:
            return None
        # A `+` that was not escaped arrives as a space.
        number = submission.sender_number(number.replace(" ", "+", 1), "search")
        names = [each.client_id for each in self._trust.clients()] if clients is None else clients
        found: list[bytes] = []
        for name in names:
            client = self._trust.client(name)
            if client is None or client.status == "erased":
                continue
            found += self._sealer.number_hashes(name, number)
        return tuple(found)

    def _number(self, message: Listed, sealed: bytes) -> str:
        try:
            plain: Plain = self._sealer.unseal(message.client_id, ids.parse(message.message_id), sealed)
        except KeyErased:
            return "[erased]"
        except KeyUnavailable:
            return "[key unavailable]"
        except Undecryptable:
            return "[unreadable]"
        return masked(plain.sender_number)


def masked(number: str) -> str:
    """`+49*********00`: what tells one's own numbers apart and dials nobody."""
    hidden = len(number) - _MASKED_FROM - _MASKED_TO
    return f"{number[:_MASKED_FROM]}{'*' * hidden}{number[-_MASKED_TO:]}"


def fields(listed: Listed, number: str, body: str) -> dict[str, Any]:
    """The fields of a message as it is listed."""
    found = {name: getattr(listed, name) for name in Listed.__struct_fields__}
    for name in _TIMES:
        found[name] = None if found[name] is None else clock.iso(found[name])
    return found | {"sender_number": number, "message_body": body}


def place(query: Asked) -> int | Cursor:
    """Where the page begins: `page` or `cursor`, not both. Raises ValidationError."""
    cursor = query.text("cursor")
    if cursor is None:
        return query.number("page", 1, most=listing.BOUND)
    if query.text("page") is not None:
        raise ValidationError("page", "must not be given together with a cursor, which knows its page")
    return listing.cursor(cursor)
