"""Accounting for every accepted message, by its id: in MySQL and in the history."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from broker.domain import ids
from support.load.offering import Offered
from support.system import System, eventually

ENDS = "('Delivered','Failed','MessageDiscarded')"


@dataclass(frozen=True)
class Account:
    """Messages by id that are missing, and that are there or ended more than once."""

    accepted: int
    lost: list[str]
    doubled: list[str]
    settled_at: float
    """When every accepted message was seen to have ended in the table, by the loop's clock."""

    def figures(self) -> dict[str, int]:
        return {"accounted": self.accepted, "lost": len(self.lost), "doubled": len(self.doubled)}


async def account(system: System, *offers: Offered, within: float = 120.0) -> Account:
    """Wait until nothing is under way, then look for each id: delivered in the table, ended once in the history.

    A message that went into the log under two ids is nobody's under one of them: an id that no answer named, and
    that no request without an answer explains, counts as doubled.
    """
    accepted = set().union(*(offered.accepted for offered in offers))
    await eventually(lambda: _settled(system, accepted), within=within, what="every accepted message ended")
    settled_at = asyncio.get_running_loop().time()
    await _all_told(system, within)
    submitted, ends = _counts(system, "('MessageSubmitted')"), _counts(system, ENDS)
    lost = accepted - (_ids(system, "delivered") & set(ends) & set(submitted))
    unanswered = sum(offered.messages for offered in offers) - len(accepted)
    since = ids.text(min(offered.since_ms for offered in offers).to_bytes(6, "big") + bytes(10))
    extra = sorted(one for one in submitted if one >= since and one not in accepted)[unanswered:]
    twice = {one for counts in (submitted, ends) for one, count in counts.items() if count > 1}
    return Account(len(accepted), sorted(lost), sorted(twice.union(extra)), settled_at)


async def _all_told(system: System, within: float) -> None:
    """Wait until the history in MySQL has everything that is in the log."""
    redis, partitions = system.redis(), system.keys().partitions
    for number, partition in enumerate(partitions):
        last = (await redis.xinfo_stream(partition.events))["last-generated-id"].decode()
        if last == "0-0":
            # Nothing was ever in it.
            continue
        ms, _, seq = last.partition("-")
        query = "SELECT 1 FROM audit_log WHERE stream=%s AND ms=%s AND seq=%s"
        await eventually(
            lambda where=(str(number), ms, seq), query=query: system.query(query, *where),
            within=within,
            what=f"partition {number} in the history up to {last}",
        )
    await redis.aclose()


def _counts(system: System, types: str) -> dict[str, int]:
    """Events of these types by message."""
    query = f"SELECT subject, COUNT(*) AS n FROM audit_log WHERE type IN {types} GROUP BY subject"
    return {row["subject"]: row["n"] for row in system.query(query)}


def _ids(system: System, status: str) -> set[str]:
    rows = system.query("SELECT message_id FROM messages WHERE status=%s", status)
    return {row["message_id"] for row in rows}


def _settled(system: System, accepted: set[str]) -> bool:
    [waiting] = system.query("SELECT COUNT(*) AS n FROM messages WHERE status='queued'")
    return waiting["n"] == 0 and accepted <= _ids(system, "delivered") | _ids(system, "failed")
