"""Registering a message under an id that somebody else chose: once, however often it is asked for.

A record keyed by the id decides between callers at the same time; before and after its life `open` and the
outcome records know the id. Beyond all of them lies only an id that is too old to be new.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from broker import clock
from broker.domain import ids
from broker.domain.submission import Submission
from broker.errors import Conflict, ValidationError
from broker.events import codec, envelope, open_messages
from broker.events.acceptance import Acceptance, Origin
from broker.events.appender import Appended, Result
from broker.events.connection import Redis, call
from broker.events.keys import LogKeys
from broker.events.open_messages import FinishedMessage, OpenMessage
from broker.events.positions import start
from broker.events.sealing import Sealer
from broker.events.types import MessageSubmitted, ResendRequested

MAX_AGE_MS: Final = 24 * 3_600_000
"""An unknown id may be this old at most, where outcomes stay known for longer."""

MAX_AHEAD_MS: Final = 5 * 60_000
"""How far other machines' clocks may be ahead at most."""

# No client's name is empty, so these keys never meet a producer's own.
_NOBODY = ""


class Window(msgspec.Struct, frozen=True):
    """How old a new message's id may be (ms), and how far in the future.

    Together never more than outcomes stay known: no id from within is a message's whose end is forgotten.
    """

    age_ms: int
    ahead_ms: int

    @classmethod
    def within(cls, outcomes_kept_ms: int) -> Window:
        """The widest one; short of both bounds only where outcomes are kept for about a day or less."""
        ahead = min(MAX_AHEAD_MS, outcomes_kept_ms // 2)
        return cls(min(MAX_AGE_MS, outcomes_kept_ms - ahead), ahead)

    def check(self, message_id: bytes) -> None:
        """Raises ValidationError for an id from another time."""
        if not -self.ahead_ms <= clock.now_ms() - ids.created_ms(message_id) <= self.age_ms:
            raise ValidationError(
                "message_id",
                f"is unknown, and its time is not within the last {_span(self.age_ms)}: "
                "it cannot be a new message",
            )


class Registration:
    """Registers messages on behalf of clients.

    Of a message that ended more than a day ago neither body nor `queued_at` is at hand: the client alone is
    compared, and the time in the id is answered.
    """

    def __init__(
        self,
        redis: Redis,
        keys: LogKeys,
        sealer: Sealer,
        acceptance: Acceptance,
        *,
        outcomes_kept_ms: int,
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._sealer = sealer
        self._acceptance = acceptance
        self._window = Window.within(outcomes_kept_ms)

    async def register(
        self, origin: Origin, plain: Submission, message_id: bytes | None, queued_at: int | None
    ) -> Appended:
        """The message in the log, from now or from before; `queued_at` in milliseconds.

        Raises Conflict (the id is another message's), ValidationError (its time is not now), KeyUnavailable,
        KeyErased, LogUnavailable and LogFull.
        """
        if message_id is None:
            draft = self._acceptance.draft(origin, plain, queued_at=queued_at)
            return _same(await self._acceptance.append(draft))
        key = self._sealer.idempotency_hash(_NOBODY, ids.text(message_id))
        known = (await open_messages.look_up(self._redis, self._keys, [message_id]))[0]
        if known is not None:
            return await self._again(known, origin, plain, key)
        self._window.check(message_id)
        now = clock.now_ms() if queued_at is None else queued_at
        draft = self._acceptance.draft(origin, plain, message_id=message_id, queued_at=now, idempotency=key)
        return _same(await self._acceptance.append(draft))

    async def _again(
        self, known: OpenMessage | FinishedMessage, origin: Origin, plain: Submission, key: bytes
    ) -> Appended:
        """The answer for an id that is in use. Raises Conflict unless it is this very message."""
        if known.client_id != origin.client_id:
            raise Conflict("This id is another message's.")
        message_id = known.message_id
        partition = self._keys.partitions[ids.partition(message_id)]
        record: Any = await call(self._redis.get(partition.idempotency(key)))
        if record is not None:
            used_for, _, _, queued_at = record.split(b"|")
            if bytes.fromhex(used_for.decode()) != self._sealer.request_hash(origin.client_id, plain):
                raise Conflict("This id is another message's.")
            return Appended(message_id, start(partition.stream), int(queued_at), replayed=True)
        queued = ids.created_ms(message_id)
        if isinstance(known, OpenMessage):
            # It came in by the gateway, or its record has expired: the ciphertext itself is compared.
            queued = await self._compare(known, plain) or queued
        return Appended(message_id, start(partition.stream), queued, replayed=True)

    async def _compare(self, known: OpenMessage, plain: Submission) -> int | None:
        """Milliseconds at which it was submitted, where its event is at hand. Raises Conflict."""
        partition = self._keys.partitions[ids.partition(known.message_id)]
        entry = known.position.entry_id
        found: Any = await call(self._redis.xrange(partition.events, entry, entry))
        at = None
        if found:
            fields = found[0][1]
            tag, data = fields[b"t"].decode(), fields[b"d"]
            at = envelope.decode(fields[b"m"]).at if tag.startswith("MessageSubmitted") else None
        else:
            aside: Any = await call(self._redis.hget(partition.bodies, known.message_id))
            if aside is None:
                # It ended just now: as for every finished message, the client is all there is to compare.
                return None
            head, _, data = aside.partition(b"|")
            tag = head.decode()
        event = codec.decode(tag, data)
        if isinstance(event, MessageSubmitted | ResendRequested):
            held = self._sealer.unseal(known.client_id, known.message_id, event.sealed)
            if (held.sender_number, held.message_body) != (plain.sender_number, plain.message_body):
                raise Conflict("This id is another message's.")
        return at


def _span(ms: int) -> str:
    return f"{ms // 3_600_000} hours" if ms >= 2 * 3_600_000 else f"{ms // 1000} seconds"


def _same(result: Result) -> Appended:
    if not isinstance(result, Appended):
        raise Conflict("This id is another message's.")
    return result
