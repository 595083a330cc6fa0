"""A message's way through the worker: claimed, borne out by `open`, handed to its channel, settled."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from time import perf_counter
from typing import Any

from broker import telemetry, tracing
from broker.domain import ids, message
from broker.domain.message import Answer, Decision, End, OwnSideAway, Park, Retry
from broker.domain.retry import RetryPolicy
from broker.events.claims import Claim
from broker.services.delivery import metrics, settlements, traces
from broker.services.delivery.channels.base import Channel, Delivery
from broker.services.delivery.gates import Gates
from broker.services.delivery.hand import Capacity, Item, Lane
from broker.services.delivery.patience import Patience
from broker.services.delivery.routes import Routes
from broker.services.delivery.shelf import Shelf
from broker.services.delivery.suspects import Suspects

log = telemetry.get_logger(__name__)


class Handler:
    """Everything in hand of one process. Items leave it once: settled, lost, dropped or handed back."""

    def __init__(
        self,
        *,
        actor: str,
        routes: Routes,
        channels: Mapping[str, Channel],
        policy: RetryPolicy,
        crash_limit: int,
        capacity: Capacity,
        patience: Patience,
        gate_closed: Callable[[], None] = lambda: None,
    ) -> None:
        self._actor = actor
        self._routes = routes
        self._channels = channels
        self._policy = policy
        self._crash_limit = crash_limit
        self._capacity = capacity
        self._patience = patience
        self._shelf = Shelf(patience, self.drop)
        self._shelf.failed = self.fail
        self.gates = Gates(self.resume, self._shelf.add, capacity, gate_closed)
        self.suspects = Suspects(lambda item: self._start([item]))
        self.in_hand = 0
        """Messages claimed and not yet settled."""
        self.failed: BaseException | None = None
        self.on_failure: Callable[[], None] = lambda: None
        """Called when a defect ended a task; `failed` then holds it."""
        self._tasks: set[asyncio.Task[None]] = set()

    # -- In ------------------------------------------------------------------------------------------------

    def take(self, lane: Lane, claims: Sequence[Claim]) -> int:
        """Handle these claims; how many places they take, the others only being acknowledged."""
        fresh, others = [], []
        for claim in claims:
            if claim.event is None:
                others.append(claim)
                continue
            entry = claim.entry
            if (item := lane.items.get(entry)) is not None:
                # Read again, as after a destroyed group: the attempt under way goes on under the newer claim.
                item.claim = claim
                continue
            item = lane.items[entry] = Item(claim, lane, entry)
            fresh.append(item)
        if fresh or others:
            self._spawn(self._admit(lane, fresh, others))
        self.in_hand += len(fresh)
        metrics.in_hand().set(self.in_hand)
        return len(fresh)

    def resume(self, items: Sequence[Item]) -> None:
        """Start again with items that were held: things may have changed meanwhile."""
        lanes: dict[int, tuple[Lane, list[Item]]] = {}
        for item in items:
            lanes.setdefault(id(item.lane), (item.lane, []))[1].append(item)
        for lane, share in lanes.values():
            self._spawn(self._admit(lane, share, []))

    async def _admit(self, lane: Lane, items: list[Item], others: list[Claim]) -> None:
        claims = [*others, *(item.claim for item in items)]
        tasks, _ = await self._patience.insist(lane, "admit", lambda: lane.log.admit(claims))
        admitted = {task.claim.entry: task for task in tasks}
        ready = []
        for item in items:
            if item.gone:
                continue
            item.task = admitted.get(item.entry)
            if item.task is None:
                self.drop(item)
            elif item.work.open.crashes and not item.suspect:
                self._suspect(item)
            else:
                ready.append(item)
        self._start(ready)

    def _suspect(self, item: Item) -> None:
        crashes = item.work.open.crashes
        if crashes >= self._crash_limit:
            self._settle(item, Park(f"crashed {crashes} workers"), None)
        else:
            self.suspects.add(item)

    # -- Through -------------------------------------------------------------------------------------------

    def _start(self, items: Sequence[Item]) -> None:
        batches: dict[str, list[Delivery]] = {}
        now = perf_counter()
        for item in items:
            prepared = self._routes.prepare(item.work)
            if not isinstance(prepared, tuple):
                self._answered(item, prepared)
                continue
            item.channel, item.delivery = prepared
            item.delivery.item = item
            item.started = now
            if self.gates.blocked(f"channel:{item.channel}", item):
                self.gates.hold(f"channel:{item.channel}", item, "")
            else:
                batches.setdefault(item.channel, []).append(item.delivery)
        for channel, deliveries in batches.items():
            self._spawn(self._deliver(channel, deliveries))

    async def _deliver(self, name: str, deliveries: list[Delivery]) -> None:
        channel = self._channels.get(name)
        away = OwnSideAway(f"this worker has no channel {name}")
        if channel is not None:
            try:
                await channel.deliver(deliveries, self._report)
                away = OwnSideAway("the channel gave no answer", scope="message")
            except Exception as error:
                # A defect of ours must cost neither the message nor an attempt.
                log.exception("channel_defect", channel=name)
                away = OwnSideAway(f"defect: {type(error).__name__}", scope="message")
        for delivery in deliveries:
            if not delivery.answered:
                self._report(delivery, away)

    def _report(self, delivery: Delivery, answer: Answer) -> None:
        delivery.answered = True
        item: Item = delivery.item
        if item.gone or item.settling or item.delivery is not delivery:
            return
        self._answered(item, answer)

    def _answered(self, item: Item, answer: Answer) -> None:
        decision = message.decide(answer, item.work.attempt, self._policy)
        if isinstance(answer, OwnSideAway):
            self.gates.hold(_gate(item, answer), item, answer.reason)
            return
        self.gates.answered(item)
        self._settle(item, decision, answer)

    def _settle(self, item: Item, decision: Decision, answer: Answer | None) -> None:
        item.answered = perf_counter()
        seconds = item.answered - item.started if item.started else 0.0
        settlement = settlements.settlement(
            item.work,
            item.claim,
            decision,
            answer,
            channel=item.channel,
            latency_ms=round(seconds * 1000),
            actor=self._actor,
        )
        if settlement.attempted is not None:
            metrics.attempt_seconds(item.channel).observe(seconds)
        item.lane.committer.add(item, settlement)
        item.decision = decision

    # -- Out -----------------------------------------------------------------------------------------------

    def settled(self, items: Sequence[tuple[Item, Claim, bool]], repeated: bool) -> None:
        """The committer's answer: each item, the claim that was judged, and whether it was written."""
        counts: Counter[tuple[str, str]] = Counter()
        again = []
        lost = 0
        for item, claim, written in items:
            if not written and not item.gone and item.claim is not claim:
                # The group was destroyed, and read again before this answer came: nobody but us will look at
                # the newer claim.
                item.settling = False
                again.append(item)
                continue
            self.drop(item)
            if written:
                self._recorded(item, counts)
            elif not repeated:
                # After a lost reply the first try may have written it; that is no lost claim.
                lost += 1
        self.resume(again)
        for (channel, outcome), count in counts.items():
            metrics.attempts(channel, outcome).inc(count)
        if lost:
            metrics.lost_claims().inc(lost)
        metrics.in_hand().set(self.in_hand)

    def _recorded(self, item: Item, counts: Counter[tuple[str, str]]) -> None:
        if tracing.active is not None:
            traces.recorded(item)
        match item.decision:
            case End(outcome="discarded"):
                metrics.discarded().inc()
            case End(outcome=outcome):
                counts[item.channel, outcome] += 1
            case Retry():
                counts[item.channel, "retry"] += 1
                item.lane.retry_scheduled.set()
            case Park(reason=reason):
                metrics.parked().inc()
                log.warning("message_parked", message_id=ids.text(item.claim.message_id), reason=reason)

    def lost(self, item: Item) -> None:
        """Another worker owns the claim: stop working on it and write nothing."""
        metrics.lost_claims().inc()
        self.drop(item)

    def drop(self, item: Item) -> None:
        """The item is no longer in hand."""
        if item.gone:
            return
        item.gone = True
        item.lane.items.pop(item.entry, None)
        if item.delivery is not None and not item.settling:
            item.delivery.cancel()
        self.gates.left(item)
        self.suspects.left(item)
        if item.suspect:
            item.lane.claims_wait.set()
        self.in_hand -= 1
        self._capacity.leave(item)

    async def aclose(self) -> None:
        """Give up every attempt that is still under way."""
        await self.gates.aclose()
        await self._shelf.aclose()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """A defect: the worker stops, and others take over."""
        self.failed = error
        self.on_failure()


def _gate(item: Item, answer: OwnSideAway) -> str:
    if answer.scope == "channel":
        return f"channel:{item.channel}"
    if answer.scope == "client":
        return f"client:{item.work.open.client_id}"
    return f"message:{item.claim.message_id.hex()}"
