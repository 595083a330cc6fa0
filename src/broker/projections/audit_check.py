"""Whether the table `audit_log` says what the log says: row by row, every column."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, Final

import msgspec

from broker.errors import BrokerError, UnknownEvent
from broker.events import chain, codec, envelope, exported
from broker.events.exported_source import Linked, Source, linked
from broker.events.positions import Position, start
from broker.projections import audit_log, base, queries
from broker.projections.store import Store


class TableAltered(BrokerError):
    """The table audit_log is not what the log says."""

    code = "table_altered"

    def __init__(self, detail: str = "", where: Position | None = None) -> None:
        self.where = where
        """The first event that is concerned."""
        super().__init__(detail)


LATER: Final = 10_000
"""Rows after the checkpoint that are looked at."""


async def check_streams(store: Store, streams: Sequence[str]) -> None:
    """Raises TableAltered for rows of a stream that there is not, StoreUnavailable."""
    for row in await store.select("SELECT DISTINCT stream FROM audit_log"):
        if row["stream"] not in streams:
            raise TableAltered(f"Rows of a stream {row['stream']} were inserted.")


class TableCheck:
    """Compares one stream's rows with its events, given in blocks, up to the projection's checkpoint.

    Rows and events up to `after` are left out.
    """

    def __init__(
        self, store: Store, stream: str, checkpoint: Position, after: Position | None = None
    ) -> None:
        self.rows = 0
        self._store = store
        self._stream = stream
        self._checkpoint = checkpoint
        self._at = start(stream) if after is None else after

    async def compare(self, block: Sequence[Linked]) -> None:
        """Raises TableAltered naming the first row that is changed, missing or inserted; StoreUnavailable."""
        wanted = [one for one in block if one.stored.position <= self._checkpoint]
        if not wanted:
            return
        last = wanted[-1].stored.position
        rows = await self._rows(last)
        for one, row in zip(wanted, rows, strict=False):
            position = one.stored.position
            found = Position(self._stream, int(row["ms"]), int(row["seq"]))
            if found != position:
                kind = "was inserted" if found < position else "is missing"
                raise _altered(min(found, position), kind)
            if name := _difference(one, row):
                raise _altered(position, f"was changed: {name}")
        if len(rows) != len(wanted):
            first = min(len(rows), len(wanted))
            where = wanted[first].stored.position if len(rows) < len(wanted) else _position(rows[first])
            raise _altered(where, "is missing" if len(rows) < len(wanted) else "was inserted")
        self.rows += len(rows)
        self._at = last

    async def finish(self, source: Source) -> None:
        """After the last block. Raises TableAltered for rows of events that there are not."""
        rows = await self._store.select(
            "SELECT stream,ms,seq FROM audit_log WHERE stream=%s AND (ms>%s OR (ms=%s AND seq>%s)) "
            f"ORDER BY ms,seq LIMIT {LATER}",
            (self._stream, self._at.ms, self._at.ms, self._at.seq),
        )
        if not rows:
            return
        # Read after the rows: what the projection wrote meanwhile is among them.
        last = _position(rows[-1])
        known: set[Position] = set()
        async with aclosing(source.blocks(self._stream, self._at)) as blocks:
            async for block in blocks:
                known.update(entry.position for entry in block)
                if block[-1].position >= last:
                    break
        for row in rows:
            if _position(row) not in known:
                raise _altered(_position(row), "was inserted")

    async def _rows(self, last: Position) -> list[dict[str, Any]]:
        return list(
            await self._store.select(
                f"SELECT {','.join(audit_log.COLUMNS)} FROM audit_log WHERE stream=%s "
                "AND (ms>%s OR (ms=%s AND seq>%s)) AND (ms<%s OR (ms=%s AND seq<=%s)) ORDER BY ms,seq",
                (self._stream, self._at.ms, self._at.ms, self._at.seq, last.ms, last.ms, last.seq),
            )
        )


async def first_difference(
    source: Source, store: Store, stream: str, checkpoint: Position
) -> TableAltered | None:
    """Where log and table part, whichever of them is right. Raises what reading them does."""
    table = TableCheck(store, stream, checkpoint)
    try:
        async with aclosing(linked(source, stream, start(stream), chain.GENESIS)) as blocks:
            async for block in blocks:
                await table.compare(block)
    except TableAltered as found:
        return found
    return None


def _altered(position: Position, what: str) -> TableAltered:
    return TableAltered(f"{position} {what}.", position)


def _position(row: dict[str, Any]) -> Position:
    return Position(row["stream"], int(row["ms"]), int(row["seq"]))


def _difference(one: Linked, row: dict[str, Any]) -> str | None:
    """The name of a column that says something else than the event; None when all are right."""
    if audit_log.stored(row) != one.stored:
        return "its stored bytes"
    if (bytes(row["hash"]), bytes(row["previous_hash"])) != (one.hash, one.previous):
        return "its hashes"
    try:
        found = envelope.decode(one.stored.envelope)
    except msgspec.DecodeError:
        return None
    message = one.stored.subject if base.is_partition(one.stored.position.stream) else None
    try:
        client = getattr(codec.decode(one.stored.tag, one.stored.data), "client_id", None)
    except UnknownEvent:
        client = None
    expected = {
        "at": found.at,
        "actor": found.actor,
        "correlation_id": envelope.conversation(found, message),
        "causation_id": found.causation,
        "subject": exported.subject_text(one.stored),
        "client_id": client,
    }
    shown = row | {"at": queries.milliseconds(row["at"])}
    return next((name for name, value in expected.items() if shown[name] != value), None)
