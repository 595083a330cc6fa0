"""Claims handed back under the name of what they wait for, for whoever finds it back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from broker.services.delivery import metrics
from broker.services.delivery.hand import Item, Lane
from broker.services.delivery.patience import Patience


class Shelf:
    """Hands items back in groups; `done` is told each when it is no longer ours."""

    def __init__(self, patience: Patience, done: Callable[[Item], None]) -> None:
        self._patience = patience
        self._done = done
        self._waiting: dict[tuple[Lane, str], list[Item]] = {}
        self._task: asyncio.Task[None] | None = None
        self.failed: Callable[[BaseException], None] = lambda _: None

    def add(self, key: str, item: Item) -> None:
        """Hand `item` back soon; until then it stays in hand, with its place."""
        self._waiting.setdefault((item.lane, key), []).append(item)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._drain())
            self._task.add_done_callback(self._ended)

    async def aclose(self) -> None:
        """Give up: what is still in hand is then handed back without a name."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _drain(self) -> None:
        try:
            while self._waiting:
                (lane, key), items = self._waiting.popitem()
                claims = [item.claim for item in items]
                await self._patience.insist(lane, "release", partial(lane.log.release, claims, shelf=key))
                metrics.shelved().inc(len(items))
                for item, claim in zip(items, claims, strict=True):
                    if item.claim is claim:
                        self._done(item)
                    else:
                        # Read again meanwhile, after a destroyed group: it is the newer claim that is ours.
                        self.add(key, item)
        finally:
            self._task = None

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failed(error)
