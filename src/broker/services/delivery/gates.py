"""Circuit breakers: messages that wait, no attempt counted, until our own side is back.

A gate is for a channel, for one client's keys, or for a single message. It opens with the first message that
found our side away and keeps that one; after a back-off it probes, and when it gets any answer the gate
closes. All others are shelved: handed back for a worker that has no such gate, this one too once it has
none, so that a channel that is away never keeps another from working.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

from broker import lifecycle, telemetry
from broker.services.delivery import metrics
from broker.services.delivery.hand import Capacity, Item

log = telemetry.get_logger(__name__)

MANY = 64
"""How many gates may be of single messages; those of further ones share one."""

Resume = Callable[[Sequence[Item]], None]
Shelve = Callable[[str, Item], None]


class Gate:
    """An open breaker and the message that will probe, or does."""

    def __init__(self, key: str, reason: str) -> None:
        self.key = key
        self.reason = reason
        self.kept: Item | None = None
        self.probe: Item | None = None
        self.verdict: asyncio.Future[bool | None] | None = None

    def decide(self, item: Item, verdict: bool | None) -> None:
        """Tell how the probe went: True answered, False still away, None it left in another way."""
        if item is self.probe and self.verdict is not None and not self.verdict.done():
            self.verdict.set_result(verdict)


class Gates:
    """All open breakers of a process.

    `resume` starts an item anew, asking first whether it still stands. `shelve` hands one back under the
    gate's key; who takes claims over asks `shut` for those to leave. `closed` is called when a gate closed.
    """

    def __init__(
        self,
        resume: Resume,
        shelve: Shelve,
        capacity: Capacity,
        closed: Callable[[], None],
        *,
        base: float = 0.25,
        ceiling: float = 5.0,
    ) -> None:
        self._resume = resume
        self._shelve = shelve
        self._capacity = capacity
        self._closed = closed
        self._base = base
        self._ceiling = ceiling
        self._gates: dict[str, Gate] = {}
        # By key, until an answer comes: a gate that had nothing to probe with goes on where it was.
        self._waits: dict[str, Iterator[float]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def waits_for(self) -> dict[str, str]:
        """What is away, by gate, and why."""
        return {key: gate.reason for key, gate in self._gates.items() if gate.kept or gate.probe}

    def shut(self) -> list[str]:
        """The keys of what is away."""
        return list(self._gates)

    def blocked(self, key: str, item: Item) -> bool:
        """Whether this item has to wait behind the gate; the probe may pass."""
        gate = self._gates.get(key)
        return gate is not None and gate.probe is not item

    def hold(self, key: str, item: Item, reason: str) -> None:
        """Our own side is away for this item: keep it to probe with, without its place, or shelve it."""
        if key.startswith("message:") and len(self._gates) >= MANY:
            key = f"messages:{item.channel}"
        gate = self._gates.get(key)
        self._left(item, gate)
        if gate is None:
            gate = self._gates[key] = Gate(key, reason)
            self._opened(gate)
        elif reason:
            gate.reason = reason
        # A suspect that was kept would keep all other suspects waiting, and be suspected of their deaths.
        # Where each has its own trouble none can probe for the others: that gate only passes time.
        if item.suspect or gate.kept or gate.probe not in {None, item} or key.startswith("messages:"):
            self._shelve(key, item)
        else:
            gate.kept = item
            metrics.held().inc()
            self._capacity.leave(item)
        gate.decide(item, False)

    def answered(self, item: Item) -> None:
        """The recipient's side answered: if this was a probe, its gate closes."""
        for gate in self._gates.values():
            gate.decide(item, True)
        for key in (f"channel:{item.channel}", f"client:{item.work.open.client_id}") if self._waits else ():
            # An open gate asks its own probe.
            if key not in self._gates:
                self._back(key)

    def left(self, item: Item) -> None:
        """The item is no longer in hand."""
        self._left(item, None)

    def items(self) -> list[Item]:
        """Everything kept."""
        kept = (gate.kept for gate in self._gates.values())
        return [item for item in kept if item is not None and not item.gone]

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
        if gate.key not in self._waits:
            self._waits[gate.key] = lifecycle.backoff(self._base, self._ceiling)
            log.warning("own_side_away", gate=gate.key, reason=gate.reason)
        task = asyncio.get_running_loop().create_task(self._watch(gate))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self, gate: Gate) -> None:
        kind, _, name = gate.key.partition(":")
        verdict: bool | None = False
        while verdict is False:
            await asyncio.sleep(next(self._waits[gate.key]))
            verdict = await self._probe(gate)
        del self._gates[gate.key]
        if kind == "channel":
            metrics.breaker_open(name).set(0)
        if verdict or kind == "message":
            self._back(gate.key)
        self._closed()

    async def _probe(self, gate: Gate) -> bool | None:
        """Whether our own side is back; None where there was nothing to find it out with."""
        item, gate.kept = gate.kept, None
        if item is None:
            return None
        metrics.held().dec()
        if item.gone:
            return None
        gate.probe = item
        gate.verdict = asyncio.get_running_loop().create_future()
        try:
            if not await self._capacity.enter(item):
                return None
            self._resume([item])
            return await gate.verdict
        finally:
            gate.probe = None

    def _back(self, key: str) -> None:
        if self._waits.pop(key, None) is not None:
            log.info("own_side_back", gate=key)
