"""What a worker has in hand: how much it may have, and each message with its claim."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from broker.domain.message import Decision
from broker.events.delivery_log import Claim, DeliveryLog, Task
from broker.services.delivery.channels.base import Delivery

if TYPE_CHECKING:
    from broker.services.delivery.committer import Committer


class Capacity:
    """How many messages may be in hand at once, shared first come, first served."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.free = limit
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def reserve(self, wanted: int) -> int:
        """Places for up to `wanted` messages, at least one; waits while there is none."""
        while self.free == 0 or self._waiting:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            self._wake()
            try:
                await turn
            except asyncio.CancelledError:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                else:
                    self._wake()
                raise
            if self.free > 0:
                break
        taken = min(wanted, self.free)
        self.free -= taken
        self._wake()
        return taken

    def release(self, places: int) -> None:
        """Give places back."""
        self.free += places
        self._wake()

    def _wake(self) -> None:
        while self.free > 0 and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return


@dataclass(slots=True, eq=False)
class Item:
    """A claim in hand, from reading it to knowing that it is settled, lost or handed back."""

    claim: Claim
    lane: Lane
    entry: str
    task: Task | None = None
    delivery: Delivery | None = None
    channel: str = ""
    started: float = 0.0
    suspect: bool = False
    settling: bool = False
    gone: bool = False
    decision: Decision | None = None

    @property
    def work(self) -> Task:
        """The attempt, once `open` has borne it out."""
        if self.task is None:
            raise RuntimeError("asked for before it was admitted")
        return self.task


@dataclass(slots=True, eq=False)
class Lane:
    """One partition as this worker sees it."""

    log: DeliveryLog
    committer: Committer = field(init=False)
    items: dict[str, Item] = field(default_factory=dict)
    retry_scheduled: asyncio.Event = field(default_factory=asyncio.Event)
    steady_since: float | None = None
    """Since when (monotonic) every call succeeded and the heartbeat was on time; None: not so now."""

    @property
    def name(self) -> str:
        """The partition's number, as text."""
        return self.log.partition.stream
