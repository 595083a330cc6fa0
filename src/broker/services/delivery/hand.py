"""What a worker has in hand: how much it may have, and each message with its claim."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from broker.domain.message import Decision
from broker.events.claims import Claim, Task
from broker.events.delivery_log import DeliveryLog
from broker.services.delivery.channels.base import Delivery

if TYPE_CHECKING:
    from broker.services.delivery.committer import Committer


class Capacity:
    """How many messages may be in hand at once, shared first come, first served."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.free = limit
        self._waiting: deque[tuple[int, asyncio.Future[int]]] = deque()

    async def reserve(self, wanted: int) -> int:
        """Places for up to `wanted` messages, at least one; waits while there is none."""
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, turn))
        self._serve()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(turn.result())
            raise

    def release(self, places: int) -> None:
        """Give places back."""
        self.free += places
        self._serve()

    def leave(self, item: Item) -> None:
        """The item gives its place to others, if it has one."""
        if item.placed:
            item.placed = False
            self.release(1)

    async def enter(self, item: Item) -> bool:
        """Wait for a place for an item that gave its own up; False where it is gone meanwhile."""
        await self.reserve(1)
        if item.gone:
            self.release(1)
            return False
        item.placed = True
        return True

    def _serve(self) -> None:
        # Given, not announced: whoever asks again at once would be there before the one who waited.
        while self.free > 0 and self._waiting:
            wanted, turn = self._waiting.popleft()
            if not turn.done():
                taken = min(wanted, self.free)
                self.free -= taken
                turn.set_result(taken)


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
    answered: float = 0.0
    suspect: bool = False
    settling: bool = False
    placed: bool = True
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
    claims_wait: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when claims that nobody works on may be taken at once."""
    steady_since: float | None = None
    """Since when (monotonic) every call succeeded and the heartbeat was on time; None: not so now."""

    @property
    def name(self) -> str:
        """The partition's number, as text."""
        return self.log.partition.stream
