"""Group commit of outcomes: what finished meanwhile goes out in one script call."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

from broker.events.delivery_log import Settlement
from broker.events.positions import Position
from broker.services.delivery.hand import Item, Lane
from broker.services.delivery.patience import Patience

GROUP_LIMIT = 500

Settled = Callable[[Item, Position | None, bool], None]


class Committer:
    """One partition's outcomes; at most one call under way, the next group gathering behind it.

    A call without a reply is repeated: the fence lets it write once. `settled` is told the item, the position
    of its last event (None: nothing was written), and whether an earlier try may have written it.
    """

    def __init__(self, lane: Lane, patience: Patience, settled: Settled) -> None:
        self._lane = lane
        self._patience = patience
        self._settled = settled
        self._waiting: deque[tuple[Item, Settlement]] = deque()
        self._task: asyncio.Task[None] | None = None

    def add(self, item: Item, settlement: Settlement) -> None:
        """Write this soon."""
        item.settling = True
        self._waiting.append((item, settlement))
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._drain())

    async def aclose(self) -> None:
        """Give up what is not written; whether the call under way has its effect stays unknown."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _drain(self) -> None:
        try:
            while self._waiting:
                group = [self._waiting.popleft() for _ in range(min(GROUP_LIMIT, len(self._waiting)))]
                settlements = [settlement for _, settlement in group]
                positions, repeated = await self._patience.insist(
                    self._lane, "settle", partial(self._lane.log.settle, settlements)
                )
                for (item, _), position in zip(group, positions, strict=True):
                    self._settled(item, position, repeated)
        finally:
            self._task = None
