"""What a repair of the log learns from the database, and tells it (`events.repair.tables`).

The audit log holds every event as it was stored. What the archive did not get before Redis lost it is there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from broker.domain import ids
from broker.errors import BrokerError
from broker.events import chain, positions
from broker.events.codec import Stored
from broker.events.open_messages import FinishedMessage, Outcome
from broker.events.positions import Position
from broker.events.repair.tables import Reader
from broker.projections import audit_log, catalog, checkpoints, queries, sql
from broker.projections.store import Store

PAGE = 2000
_COLUMNS = "stream,ms,seq,type,version,subject,envelope,data,hash,previous_hash"
_OUTCOMES: dict[str, Outcome] = {"delivered": "delivered", "failed": "failed", "discarded": "discarded"}


class AuditChanged(BrokerError):
    """The audit log does not follow on from the archive."""

    code = "audit_changed"


class StoredTables:
    """The tables behind `store`; as in `Tables`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def readers(self) -> dict[str, dict[str, Reader]]:
        """As in Tables."""
        found: dict[str, dict[str, Reader]] = {}
        for row in await checkpoints.everything(self._store):
            reader = Reader(row.projection, row.position, row.events, row.incarnation)
            found.setdefault(row.position.stream, {})[row.projection] = reader
        return found

    def wanted(self, stream: str) -> Sequence[str]:
        """As in Tables."""
        return [each.name for each in catalog.projections() if each.wants(stream)]

    async def recorded(self, stream: str, after: Position) -> AsyncIterator[list[Stored]]:
        """As in Tables."""
        head = await self._head(stream, after)
        while True:
            rows = await self._store.select(
                f"SELECT {_COLUMNS} FROM audit_log WHERE stream=%s AND (ms>%s OR (ms=%s AND seq>%s)) "
                "ORDER BY ms,seq LIMIT %s",
                (stream, after.ms, after.ms, after.seq, PAGE),
            )
            if not rows:
                return
            block = []
            for row in rows:
                entry = audit_log.stored(row)
                digest = chain.link(head, entry)
                if head != bytes(row["previous_hash"]) or digest != bytes(row["hash"]):
                    raise AuditChanged(
                        f"At {entry.position}: was a row changed, or is the archive another log's? "
                        "`broker events verify --live` tells more; `broker projection rebuild audit_log "
                        "--archive-only` makes it anew of what is archived."
                    )
                head = digest
                block.append(entry)
            yield block
            after = block[-1].position

    async def _head(self, stream: str, after: Position) -> bytes:
        """The hash at `after`; of the last row before it where the audit log goes no further."""
        if after == positions.start(stream):
            return chain.GENESIS
        rows = await self._store.select(
            "SELECT hash FROM audit_log WHERE stream=%s AND ms=%s AND seq=%s", (stream, after.ms, after.seq)
        )
        return bytes(rows[0]["hash"]) if rows else chain.GENESIS

    async def adopt(self, incarnations: Mapping[str, str]) -> None:
        """As in Tables."""
        for stream, incarnation in incarnations.items():
            await checkpoints.adopt(self._store, stream, incarnation)

    async def outcomes(self, message_ids: Sequence[bytes]) -> list[FinishedMessage]:
        """As in Tables."""
        found: list[FinishedMessage] = []
        for first in range(0, len(message_ids), PAGE):
            page = [ids.text(one) for one in message_ids[first : first + PAGE]]
            marks = ",".join(["%s"] * len(page))
            rows = await self._store.select(
                "SELECT message_id,client_id,status,cycle,attempt_count,delivered_at,failed_at FROM messages "
                f"WHERE status<>'queued' AND message_id IN ({marks})",
                page,
            )
            found += [_finished(row) for row in rows if row["status"] in _OUTCOMES]
        return found

    async def submitted(self, stream: str, after: Position, most: int) -> list[bytes]:
        """As in Tables."""
        rows = await self._store.select(
            "SELECT message_id FROM messages WHERE stream=%s AND (submitted_ms>%s OR (submitted_ms=%s AND "
            "submitted_seq>%s)) ORDER BY submitted_ms,submitted_seq LIMIT %s",
            (stream, after.ms, after.ms, after.seq, most),
        )
        return [ids.parse(row["message_id"]) for row in rows]

    async def correct(
        self, stream: str, incarnation: str, places: Mapping[str, tuple[Position, int]]
    ) -> None:
        """As in Tables."""
        async with self._store.transaction() as transaction:
            for projection, (position, events) in places.items():
                await transaction.execute(
                    f"UPDATE checkpoints SET ms={position.ms},seq={position.seq},events={events} "
                    f"WHERE projection={sql.text(projection)} AND stream={sql.text(stream)} "
                    f"AND incarnation={sql.text(incarnation)}"
                )


def _finished(row: Mapping[str, Any]) -> FinishedMessage:
    ended = row["delivered_at"] or row["failed_at"]
    return FinishedMessage(
        ids.parse(row["message_id"]),
        _OUTCOMES[row["status"]],
        row["cycle"],
        row["attempt_count"],
        queries.optional_milliseconds(ended) or 0,
        row["client_id"],
    )
