"""Circuit breakers: messages that wait in hand, no attempt counted, until our own side is back.

A gate is for a channel, for one client's keys, or for a single message. It opens with the first message that
found our side away; after a back-off one message probes, and when that one gets any answer, the rest follow.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from broker import lifecycle, telemetry
from broker.services.delivery import metrics
from broker.services.delivery.hand import Item

log = telemetry.get_logger(__name__)

Resume = Callable[[Sequence[Item]], None]


class Gate:
    """An open breaker and what waits behind it."""

    def __init__(self, key: str, reason: str) -> None:
        self.key = key
        self.reason = reason
        self.held: deque[Item] = deque()
        self.probe: Item | None = None
        self.verdict: asyncio.Future[bool | None] | None = None

    def decide(self, item: Item, verdict: bool | None) -> None:
        """Tell how the probe went: True answered, False still away, None it left in another way."""
        if item is self.probe and self.verdict is not None and not self.verdict.done():
            self.verdict.set_result(verdict)


class Gates:
    """All open breakers of a process. `resume` starts items anew, asking first whether they still stand."""

    def __init__(self, resume: Resume, *, base: float = 0.25, ceiling: float = 5.0) -> None:
        self._resume = resume
        self._base = base
        self._ceiling = ceiling
        self._gates: dict[str, Gate] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def waits_for(self) -> dict[str, str]:
        """What is away, by gate, and why."""
        return {key: gate.reason for key, gate in self._gates.items() if gate.held or gate.probe}

    def blocked(self, key: str, item: Item) -> bool:
        """Whether this item has to wait behind the gate; the probe may pass."""
        gate = self._gates.get(key)
        return gate is not None and gate.probe is not item

    def hold(self, key: str, item: Item, reason: str) -> None:
        """Keep `item` until our own side is back."""
        gate = self._gates.get(key)
        self._left(item, gate)
        if gate is None:
            gate = self._gates[key] = Gate(key, reason)
            self._opened(gate)
        elif reason:
            gate.reason = reason
        gate.decide(item, False)
        gate.held.append(item)
        metrics.held().inc()

    def answered(self, item: Item) -> None:
        """The recipient's side answered: if this was a probe, its gate closes."""
        for gate in self._gates.values():
            gate.decide(item, True)

    def left(self, item: Item) -> None:
        """The item is no longer in hand."""
        self._left(item, None)

    def items(self) -> list[Item]:
        """Everything held."""
        return [item for gate in self._gates.values() for item in gate.held if not item.gone]

    async def aclose(self) -> None:
        """Stop probing."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _left(self, item: Item, but: Gate | None) -> None:
        for gate in self._gates.values():
            if gate is not but:
                gate.decide(item, None)

    def _opened(self, gate: Gate) -> None:
        kind, _, name = gate.key.partition(":")
        if kind == "channel":
            metrics.breaker_open(name).set(1)
        log.warning("own_side_away", gate=gate.key, reason=gate.reason)
        task = asyncio.get_running_loop().create_task(self._watch(gate))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self, gate: Gate) -> None:
        waits = lifecycle.backoff(self._base, self._ceiling)
        while True:
            await asyncio.sleep(next(waits))
            while (item := self._next(gate)) is not None:
                if await self._passes(gate, item) is not None:
                    break
            if item is None or (gate.verdict is not None and gate.verdict.result()):
                break
        self._close(gate)

    def _next(self, gate: Gate) -> Item | None:
        while gate.held:
            item = gate.held.popleft()
            metrics.held().dec()
            if not item.gone:
                return item
        return None

    async def _passes(self, gate: Gate, item: Item) -> bool | None:
        gate.probe = item
        gate.verdict = asyncio.get_running_loop().create_future()
        self._resume([item])
        try:
            return await gate.verdict
        finally:
            gate.probe = None

    def _close(self, gate: Gate) -> None:
        del self._gates[gate.key]
        kind, _, name = gate.key.partition(":")
        if kind == "channel":
            metrics.breaker_open(name).set(0)
        log.info("own_side_back", gate=gate.key)
        waiting = []
        while (item := self._next(gate)) is not None:
            waiting.append(item)
        if waiting:
            self._resume(waiting)
