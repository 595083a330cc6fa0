"""Accounting for every accepted message, by its id: in MySQL and in the history."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from support.system import System, eventually

ENDS = "('Delivered','Failed','MessageDiscarded')"


@dataclass(frozen=True)
class Account:
    """Messages by id that are missing, and that ended more than once."""

    accepted: int
    lost: list[str]
    doubled: list[str]
    settled_at: float
    """When every accepted message was seen to have ended in the table, by the loop's clock."""

    def figures(self) -> dict[str, int]:
        return {"accounted": self.accepted, "lost": len(self.lost), "doubled": len(self.doubled)}


async def account(system: System, accepted: set[str], within: float = 120.0) -> Account:
    """Wait until nothing is under way, then look for each id: delivered in the table, ended once in the history."""
    await eventually(lambda: _settled(system, accepted), within=within, what="every accepted message ended")
    settled_at = asyncio.get_running_loop().time()
    ends = {row["subject"]: row["n"] for row in system.query(_ENDED)}
    lost = sorted(accepted - _ids(system, "delivered") | accepted - set(ends))
    return Account(len(accepted), lost, sorted(one for one, count in ends.items() if count > 1), settled_at)


_ENDED = f"SELECT subject, COUNT(*) AS n FROM audit_log WHERE type IN {ENDS} GROUP BY subject"


def _ids(system: System, status: str) -> set[str]:
    rows = system.query("SELECT message_id FROM messages WHERE status=%s", status)
    return {row["message_id"] for row in rows}


def _settled(system: System, accepted: set[str]) -> bool:
    [waiting] = system.query("SELECT COUNT(*) AS n FROM messages WHERE status='queued'")
    return waiting["n"] == 0 and accepted <= _ids(system, "delivered") | _ids(system, "failed")
