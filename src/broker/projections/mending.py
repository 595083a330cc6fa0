"""What those who mend by hand need to know of messages: why some are parked, and what a resend carries."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import msgspec

from broker.projections.listing import marks
from broker.projections.store import Store

MAX_REASONS: Final = 100


class Reason(msgspec.Struct, frozen=True):
    """Why messages are parked, how many for it, and since when the first of them (ms, by the log's clock)."""

    reason: str
    count: int
    oldest: int


class Held(msgspec.Struct, frozen=True):
    """A message as the read model has it, with its ciphertext."""

    message_id: str
    client_id: str
    status: str
    cycle: int
    sealed: bytes


async def reasons(store: Store) -> list[Reason]:
    """The commonest reasons, at most MAX_REASONS, the commonest first. Raises StoreUnavailable."""
    # While a message is parked nothing happens to it: its last change is its parking.
    rows = await store.select(
        "SELECT reason,COUNT(*) AS n,MIN(changed_ms) AS oldest FROM messages FORCE INDEX (parked_queued) "
        f"WHERE parked=1 GROUP BY reason ORDER BY n DESC,reason LIMIT {MAX_REASONS}"
    )
    return [Reason(row["reason"] or "", row["n"], row["oldest"]) for row in rows]


async def parked_since(store: Store, message_ids: Collection[str]) -> dict[str, int]:
    """When each of these messages was parked (ms, by the log's clock). Raises StoreUnavailable."""
    if not message_ids:
        return {}
    rows = await store.select(
        f"SELECT message_id,changed_ms FROM messages WHERE message_id IN ({marks(message_ids)})",
        tuple(message_ids),
    )
    return {row["message_id"]: row["changed_ms"] for row in rows}


async def held(store: Store, message_ids: Collection[str]) -> dict[str, Held]:
    """Those of these messages that the read model knows, by id. Raises StoreUnavailable."""
    if not message_ids:
        return {}
    rows = await store.select(
        "SELECT message_id,client_id,status,cycle,encrypted_body FROM messages "
        f"WHERE message_id IN ({marks(message_ids)})",
        tuple(message_ids),
    )
    return {
        row["message_id"]: Held(
            row["message_id"], row["client_id"], row["status"], row["cycle"], bytes(row["encrypted_body"])
        )
        for row in rows
    }
