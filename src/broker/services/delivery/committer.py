"""Group commit of outcomes: what finished meanwhile goes out in one script call."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from broker.events.claims import Claim, Settlement
from broker.services.delivery.hand import Item, Lane
from broker.services.delivery.patience import Patience

GROUP_LIMIT = 500

Settled = Callable[[Sequence[tuple[Item, Claim, bool]], bool], None]


class Committer:
    """One partition's outcomes; at most one call under way, the next group gathering behind it.

    A call without a reply is repeated: the fence lets it write once. `settled` is told the items, each with
    the claim that was judged and whether it was written, and whether an earlier try may have written them;
    `failed` of a defect.
    """

    def __init__(
        self, lane: Lane, patience: Patience, settled: Settled, failed: Callable[[BaseException], None]
    ) -> None:
        self._failed = failed
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
            self._task.add_done_callback(self._ended)

    async def aclose(self) -> None:
        """Give up what is not written; whether the call under way has its effect stays unknown."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _drain(self) -> None:
        try:
            while self._waiting:
                group = [self._waiting.popleft() for _ in range(min(GROUP_LIMIT, len(self._waiting)))]
                # Read again meanwhile, after a destroyed group: it is the newer claim that is ours.
                claims = [item.claim for item, _ in group]
                settlements = [
                    one if one.claim is claim else msgspec.structs.replace(one, claim=claim)
                    for (_, one), claim in zip(group, claims, strict=True)
                ]
                entries, repeated = await self._patience.insist(
                    self._lane, "settle", partial(self._lane.log.commit, settlements)
                )
                judged = zip(group, claims, entries, strict=True)
                self._settled(
                    [(item, claim, entry is not None) for (item, _), claim, entry in judged], repeated
                )
        finally:
            self._task = None

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)
