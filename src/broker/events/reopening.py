"""What people do by hand: further delivery cycles, parked messages given back or discarded."""

from __future__ import annotations

import msgspec

from broker.domain import ids
from broker.errors import Conflict
from broker.events import codec, envelope, types, upcasting
from broker.events.connection import Redis
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.events.positions import Position, at
from broker.events.scripting import Script

_reopen = Script("reopen", allow_oom=True)
_discard = Script("discard", allow_oom=True)

_REFUSALS = {
    "open": "A delivery cycle of this message is open.",
    "stale": "This message has had another cycle since.",
    "missing": "This message is not parked.",
}


class Asked(msgspec.Struct, frozen=True):
    """Who asked, when (ms), and in which conversation."""

    actor: str
    at_ms: int
    correlation_id: str | None = None


class Reopening:
    """What is done by hand to a message that no worker would touch.

    Outcomes stay known for `outcomes_kept_ms` at least.
    """

    def __init__(self, redis: Redis, keys: LogKeys, identity: LogIdentity, *, outcomes_kept_ms: int) -> None:
        self._redis = redis
        self._keys = keys
        self._identity = identity
        self._outcomes_kept_ms = outcomes_kept_ms

    async def resend(self, message_id: bytes, event: types.ResendRequested, asked: Asked) -> Position:
        """Open cycle `event.cycle`. Raises Conflict where a cycle is open or it is not the next one."""
        return await self._call("resend", message_id, event.cycle - 1, event, asked)

    async def unpark(self, message_id: bytes, client_id: str, cycle: int, asked: Asked) -> Position:
        """Give a parked message back to the workers, in its cycle. Raises Conflict where it is not parked."""
        return await self._call("unpark", message_id, cycle, types.DeliveryDue(client_id, cycle, 0), asked)

    async def discard(self, message_id: bytes, cycle: int, reason: str, asked: Asked) -> Position:
        """End the cycle of a parked message undelivered. Raises Conflict where it is not parked."""
        keys = self._keys.partitions[ids.partition(message_id)]
        done = keys.done(ids.created_ms(message_id))
        reply = await _discard(
            self._redis,
            [keys.meta, keys.events, keys.open, keys.age, keys.bodies, done],
            [
                self._identity.incarnations[keys.stream],
                message_id,
                cycle,
                envelope.encode(asked.at_ms, asked.actor, asked.correlation_id),
                upcasting.tag("MessageDiscarded"),
                reason,
                asked.at_ms,
                self._outcomes_kept_ms,
            ],
        )
        return _position(keys.stream, reply)

    async def _call(
        self, kind: str, message_id: bytes, cycle: int, event: types.MessageEvent, asked: Asked
    ) -> Position:
        keys = self._keys.partitions[ids.partition(message_id)]
        done = keys.done(ids.created_ms(message_id))
        reply = await _reopen(
            self._redis,
            [keys.meta, keys.events, keys.open, keys.age, keys.bodies, done],
            [
                self._identity.incarnations[keys.stream],
                message_id,
                kind,
                cycle,
                envelope.encode(asked.at_ms, asked.actor, asked.correlation_id),
                codec.tag_of(event),
                # An unparked message's attempt number is the script's to write.
                codec.encode(event),
                event.client_id,
                envelope.packed_correlation(asked.correlation_id),
            ],
        )
        return _position(keys.stream, reply)


def _position(stream: str, reply: bytes) -> Position:
    if b"-" not in reply:
        raise Conflict(_REFUSALS[reply.decode()])
    return at(stream, reply)
