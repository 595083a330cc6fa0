"""What is done by hand to messages, each decided by Redis: sent again, given back, discarded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import msgspec

from broker.domain import ids
from broker.errors import BrokerError, Conflict, KeyErased, LogUnavailable, NotFound
from broker.events import open_messages
from broker.events.connection import Redis
from broker.events.keys import LogKeys
from broker.events.open_messages import FinishedMessage, OpenMessage
from broker.events.positions import Position
from broker.events.reopening import Asked, Reopening
from broker.events.trust import Trust
from broker.events.types import ResendRequested
from broker.projections import mending
from broker.projections.mending import Held
from broker.projections.store import Store

AT_ONCE: Final = 50

Known = OpenMessage | FinishedMessage | None


class Interrupted(LogUnavailable):
    """The log was lost on the way."""

    @property
    def message(self) -> str:
        """How far it came."""
        return self.detail


class Done(msgspec.Struct, frozen=True):
    """A message that was changed. `continued`: it was parked, and goes on in its cycle."""

    message_id: bytes
    client_id: str
    cycle: int
    position: Position
    continued: bool = False


class Left(msgspec.Struct, frozen=True):
    """A message that was left as it is, and why."""

    message_id: bytes
    error: BrokerError


Result = Done | Left


class Hand:
    """Each method takes messages and says of each what came of it, in order. `store` may raise.

    All raise Interrupted when the log is lost on the way (it is safe to repeat them), and StoreUnavailable.
    """

    def __init__(
        self, redis: Redis, keys: LogKeys, reopening: Reopening, trust: Trust, store: Callable[[], Store]
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._trust = trust
        self._store = store
        self._reopening = reopening

    async def resend(
        self, message_ids: Sequence[bytes], asked: Asked, *, reason: str | None, even_delivered: bool
    ) -> list[Result]:
        """Open the next cycle of messages that ended; parked ones are given back to the workers."""
        known = await self._known(message_ids)
        ended = [ids.text(each) for each in message_ids if not isinstance(known[each], OpenMessage)]
        rows = await mending.held(self._store(), ended) if ended else {}

        async def one(message_id: bytes) -> Done:
            now = known[message_id]
            if isinstance(now, OpenMessage):
                return await self._unpark(now, asked)
            row = rows.get(ids.text(message_id))
            return await self._resend(message_id, now, row, reason, asked, even_delivered=even_delivered)

        return await _each(message_ids, one)

    async def unpark(self, message_ids: Sequence[bytes], asked: Asked) -> list[Result]:
        """Give parked messages back to the workers, each in its cycle."""
        known = await self._known(message_ids)
        return await _each(message_ids, lambda each: self._unpark(_parked(known[each]), asked))

    async def discard(self, message_ids: Sequence[bytes], asked: Asked, reason: str) -> list[Result]:
        """End the cycles of parked messages undelivered."""
        known = await self._known(message_ids)

        async def one(message_id: bytes) -> Done:
            parked = _parked(known[message_id])
            position = await self._reopening.discard(message_id, parked.cycle, reason, asked)
            return Done(message_id, parked.client_id, parked.cycle, position)

        return await _each(message_ids, one)

    async def _known(self, message_ids: Sequence[bytes]) -> Mapping[bytes, Known]:
        found = await open_messages.look_up(self._redis, self._keys, list(message_ids))
        return dict(zip(message_ids, found, strict=True))

    async def _unpark(self, parked: OpenMessage, asked: Asked) -> Done:
        if parked.phase != "parked":
            raise Conflict("A delivery cycle of this message is open.")
        position = await self._reopening.unpark(parked.message_id, parked.client_id, parked.cycle, asked)
        return Done(parked.message_id, parked.client_id, parked.cycle, position, continued=True)

    async def _resend(
        self,
        message_id: bytes,
        ended: FinishedMessage | None,
        row: Held | None,
        reason: str | None,
        asked: Asked,
        *,
        even_delivered: bool,
    ) -> Done:
        if row is None:
            raise NotFound("There is no such message, or the tables do not show it yet.")
        # Redis knows the outcomes of the last days; of older ones the read model tells.
        outcome, cycle = (row.status, row.cycle) if ended is None else (ended.outcome, ended.cycle)
        if outcome == "queued":
            raise Conflict("The tables do not show yet how the last cycle of this message ended.")
        if outcome == "delivered" and not even_delivered:
            raise Conflict("This message was delivered; `even_delivered` delivers it again.")
        client = self._trust.client(row.client_id)
        if client is None or client.status == "erased":
            raise KeyErased
        event = ResendRequested(row.client_id, cycle + 1, row.sealed, reason)
        position = await self._reopening.resend(message_id, event, asked)
        return Done(message_id, row.client_id, cycle + 1, position)


def _parked(known: Known) -> OpenMessage:
    if known is None:
        raise NotFound("There is no such message, or it ended long ago.")
    if isinstance(known, FinishedMessage) or known.phase != "parked":
        raise Conflict("This message is not parked.")
    return known


async def _each(message_ids: Sequence[bytes], work: Callable[[bytes], Awaitable[Done]]) -> list[Result]:
    """Some at a time; nothing more is begun once the log is lost."""

    async def one(message_id: bytes) -> Result:
        try:
            return await work(message_id)
        except (Conflict, NotFound, KeyErased, LogUnavailable) as error:
            return Left(message_id, error)

    found: list[Result] = []
    for first in range(0, len(message_ids), AT_ONCE):
        found += await asyncio.gather(*map(one, message_ids[first : first + AT_ONCE]))
        if any(isinstance(each, Left) and isinstance(each.error, LogUnavailable) for each in found):
            done = sum(isinstance(each, Done) for each in found)
            raise Interrupted(
                f"The log was lost after {done} of {len(message_ids)} messages; others may have been changed "
                "too. Repeat it: what was done is not done twice.",
            )
    return found
