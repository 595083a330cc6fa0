"""The audit log as a chain: its rows with their hashes, and the hashes of events it does not hold yet.

A hash says something about what was recorded, so it is taken from the audit log where that has the event.
Events that came after its end are linked from there, by the rule that the projection will use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from broker.events import browsing, chain
from broker.events.codec import Stored
from broker.events.connection import Redis
from broker.events.keys import StreamKeys
from broker.events.positions import Position, start
from broker.projections import audit_log
from broker.projections.store import Store

LINK_LIMIT = 10_000
"""An audit log further behind than so many events leaves hashes unknown."""
PAGE = 200

_COLUMNS = "stream,ms,seq,type,version,subject,envelope,data,hash,previous_hash"


class Chained(msgspec.Struct, frozen=True):
    """An event in its place; 32 bytes each, None where it is not known."""

    stored: Stored
    hash: bytes | None = None
    previous: bytes | None = None


async def of_subject(store: Store, subject: str) -> list[Chained]:
    """What the audit log holds of a subject, in the order of its stream. Raises StoreUnavailable."""
    query = f"SELECT {_COLUMNS} FROM audit_log WHERE subject=%s ORDER BY stream,ms,seq"
    return [_row(row) for row in await store.select(query, (subject,))]


async def event(store: Store, position: Position) -> Chained | None:
    """One event of the audit log. Raises StoreUnavailable."""
    return next(iter((await _at(store, [position])).values()), None)


async def end(store: Store, stream: str) -> tuple[Position, bytes]:
    """The audit log's last position in a stream and the hash there. Raises StoreUnavailable."""
    rows = await store.select(
        "SELECT stream,ms,seq,hash FROM audit_log WHERE stream=%s ORDER BY ms DESC,seq DESC LIMIT 1",
        (stream,),
    )
    if not rows:
        return start(stream), chain.GENESIS
    return Position(stream, int(rows[0]["ms"]), int(rows[0]["seq"])), bytes(rows[0]["hash"])


async def place(store: Store, redis: Redis, stream: StreamKeys, entries: Sequence[Stored]) -> list[Chained]:
    """The entries of one stream (ascending) with their hashes. Raises StoreUnavailable, LogUnavailable."""
    known = await _at(store, [entry.position for entry in entries])
    if len(known) < len(entries):
        # Read after the look-up: what the audit log got meanwhile would otherwise be missed by both.
        known = await _linked(store, redis, stream, entries[-1].position) | await _at(
            store, [entry.position for entry in entries]
        )
    return [known.get(entry.position, Chained(entry)) for entry in entries]


async def hash_at(store: Store, redis: Redis, stream: StreamKeys, position: Position) -> bytes | None:
    """The hash of the event at `position`, or of the beginning; None where it is not known."""
    if position == start(stream.stream):
        return chain.GENESIS
    found = await event(store, position)
    if found is None:
        found = (await _linked(store, redis, stream, position)).get(position)
        found = found or await event(store, position)
    return None if found is None else found.hash


async def _linked(store: Store, redis: Redis, stream: StreamKeys, last: Position) -> dict[Position, Chained]:
    """The events after the audit log's end up to `last`, linked; nothing when those are too many."""
    position, head = await end(store, stream.stream)
    if position >= last:
        return {}
    entries = await browsing.everything(redis, stream, position, lambda _: True, limit=LINK_LIMIT)
    found: dict[Position, Chained] = {}
    for entry in entries:
        digest = chain.link(head, entry)
        found[entry.position] = Chained(entry, digest, head)
        head = digest
    return found


async def _at(store: Store, positions: Sequence[Position]) -> dict[Position, Chained]:
    found: dict[Position, Chained] = {}
    for first in range(0, len(positions), PAGE):
        page = positions[first : first + PAGE]
        marks = ",".join(["(%s,%s,%s)"] * len(page))
        query = f"SELECT {_COLUMNS} FROM audit_log WHERE (stream,ms,seq) IN ({marks})"
        rows = await store.select(query, [value for position in page for value in position])
        found |= {chained.stored.position: chained for chained in map(_row, rows)}
    return found


def _row(row: dict[str, Any]) -> Chained:
    return Chained(audit_log.stored(row), bytes(row["hash"]), bytes(row["previous_hash"]))
