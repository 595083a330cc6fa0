"""Further delivery cycles, and parked messages given back: for admins and repair, not for workers."""

from __future__ import annotations

import msgspec

from broker.domain import ids
from broker.errors import Conflict
from broker.events import codec, envelope, types
from broker.events.connection import Redis
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.events.positions import Position, at
from broker.events.scripting import Script

_reopen = Script("reopen", allow_oom=True)

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
    """Both ways to have a message delivered that no worker would touch."""

    def __init__(self, redis: Redis, keys: LogKeys, identity: LogIdentity) -> None:
        self._redis = redis
        self._keys = keys
        self._identity = identity

    async def resend(self, message_id: bytes, event: types.ResendRequested, asked: Asked) -> Position:
        """Open cycle `event.cycle`. Raises Conflict where a cycle is open or it is not the next one."""
        return await self._call("resend", message_id, event.cycle - 1, event, asked)

    async def unpark(self, message_id: bytes, client_id: str, cycle: int, asked: Asked) -> Position:
        """Give a parked message back to the workers, in its cycle. Raises Conflict where it is not parked."""
        return await self._call("unpark", message_id, cycle, types.DeliveryDue(client_id, cycle, 0), asked)

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
        if b"-" not in reply:
            raise Conflict(_REFUSALS[reply.decode()])
        return at(keys.stream, reply)
