"""Making digests: by whoever is first, once an hour and when asked, one after another.

What the newest digest says stands in the registry and is replaced by the transaction that appends the event:
of two processes that computed the same number one writes, and the other begins anew from what it finds.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Final

import msgspec

from broker import clock
from broker.errors import BrokerError
from broker.events import codec, digests, merkle, types
from broker.events.control import Changes, Registry, View
from broker.events.digests import Digest, Signed, StreamDigest
from broker.events.digests_key import DigestKey, DigestKeyError
from broker.events.exported_source import Source, linked
from broker.events.issuing import HOUR_MS
from broker.events.positions import CONTROL, Position, start

FIELD: Final = "digest"
"""The registry field of the newest digest."""
ACTOR: Final = "system"
_TAG: Final = codec.tag_of(types.DigestSigned(0, "", b""))


class Newest(msgspec.Struct, frozen=True, array_like=True):
    """The registry's entry."""

    number: int
    body: str
    signature: bytes


class _Overtaken(BrokerError):
    """Another process made the digest of this number."""


class _Advance(msgspec.Struct, frozen=True):
    state: StreamDigest
    more: bool
    """The stream goes on after what one digest may add."""
    news: bool
    """There is an event other than a digest."""


class Digester:
    """Makes digests of one log, whose id is `log_id`."""

    def __init__(self, registry: Registry, source: Source, key: DigestKey, log_id: str) -> None:
        self._registry = registry
        self._source = source
        self._key = key
        self._log_id = log_id

    async def newest(self) -> Signed | None:
        """The last digest made. Raises LogUnavailable, LogRefused."""
        found = await self._registry.read(FIELD, Newest)
        return None if found is None else Signed(found.number, found.body, found.signature)

    async def hourly(self) -> Signed | None:
        """The digest of this hour, made now unless it was; None then. Raises as `make`."""
        return await self._make(hourly=True, actor=ACTOR, correlation_id=None)

    async def make(
        self, *, actor: str = ACTOR, correlation_id: str | None = None, new_key: bool = False
    ) -> Signed:
        """A digest over all there is now; the newest again where nothing has happened since.

        Raises LogUnavailable, LogRefused, DigestInvalid (the newest was changed), UnknownEvent, and
        DigestKeyError where another key signed so far, unless told that this one is to go on (`new_key`).
        """
        found = await self._make(hourly=False, actor=actor, correlation_id=correlation_id, new_key=new_key)
        assert found is not None  # noqa: S101  only the hourly one can be made already
        return found

    async def _make(
        self, *, hourly: bool, actor: str, correlation_id: str | None, new_key: bool = False
    ) -> Signed | None:
        more = False
        while True:
            newest = await self.newest()
            before = None if newest is None else digests.read(newest)
            now = clock.now_ms()
            if hourly and not more and before is not None and not _due(before, now):
                return None
            if before is not None and not new_key:
                self._check_key(before)
            known = {} if before is None else before.streams
            steps = {
                stream: await self._advance(stream, digests.of(known, stream))
                for stream in self._source.streams
            }
            same_key = before is not None and before.key == self._key.public.hex()
            news = hourly or any(step.news for step in steps.values())
            if newest is not None and same_key and not news:
                return newest
            signed = self._sign(newest, {stream: step.state for stream, step in steps.items()}, now)
            try:
                position = await self._write(signed, actor, correlation_id)
            except _Overtaken:
                more = False
                continue
            if not (more := any(step.more for step in steps.values())):
                return msgspec.structs.replace(signed, position=position)

    def _check_key(self, before: Digest) -> None:
        if before.key != self._key.public.hex():
            raise DigestKeyError(
                f"Digest {before.number} was signed with {before.key}, the key here is "
                f"{self._key.public.hex()}. Restore keys/digest-key from its backup or from where it is; "
                "if it is lost, go on with this one: broker events digests --make --new-key"
            )

    async def _advance(self, stream: str, before: StreamDigest) -> _Advance:
        """What the next digest says of a stream."""
        hashes: list[bytes] = []
        last, more, news = before.end(stream), False, False
        async with aclosing(
            linked(self._source, stream, before.end(stream), bytes.fromhex(before.head))
        ) as blocks:
            async for block in blocks:
                taken = block[: digests.MAX_COVERED - len(hashes)]
                hashes += [one.hash for one in taken]
                last = taken[-1].stored.position
                news = news or any(one.stored.tag != _TAG for one in taken)
                more = len(taken) < len(block)
                if len(hashes) == digests.MAX_COVERED:
                    more = True
                    break
        tree = await asyncio.to_thread(merkle.Tree, hashes)
        head = hashes[-1].hex() if hashes else before.head
        state = StreamDigest(last.entry_id, before.events + len(hashes), head, len(hashes), tree.root.hex())
        return _Advance(state, more, news)

    def _sign(self, before: Signed | None, streams: dict[str, StreamDigest], now: int) -> Signed:
        number = 1 if before is None else before.number + 1
        body = digests.encode(
            Digest(
                log_id=self._log_id,
                number=number,
                previous=digests.GENESIS if before is None else before.hash,
                at=clock.iso(now),
                key=self._key.public.hex(),
                streams=streams,
            )
        )
        return Signed(number, body, self._key.sign(body.encode()))

    async def _write(self, signed: Signed, actor: str, correlation_id: str | None) -> Position:
        def decide(view: View) -> Changes[None]:
            entry = view.get(FIELD, Newest)
            if (0 if entry is None else entry.number) != signed.number - 1:
                raise _Overtaken
            newest = Newest(signed.number, signed.body, signed.signature)
            return Changes(None, [(f"digest:{signed.number}", signed.event())], {FIELD: newest})

        done = await self._registry.transact(decide, actor=actor, correlation_id=correlation_id)
        return done.positions[0]


async def recorded(source: Source, *, upto: int | None = None) -> list[Signed]:
    """Every digest that `control` holds, in order, up to number `upto`. Raises as `blocks`."""
    found: list[Signed] = []
    async with aclosing(source.blocks(CONTROL, start(CONTROL))) as blocks:
        async for block in blocks:
            for entry in block:
                if entry.tag == _TAG:
                    event = codec.decode(entry.tag, entry.data)
                    assert isinstance(event, types.DigestSigned)  # noqa: S101  its tag says so
                    found.append(Signed(event.number, event.body, event.signature, entry.position))
            if upto is not None and found and found[-1].number >= upto:
                break
    return found if upto is None else [one for one in found if one.number <= upto]


def _due(before: Digest, now: int) -> bool:
    """Whether `now` is in a later hour; or the clock that the last one was made by was far ahead."""
    at = clock.parse_iso(before.at)
    return now // HOUR_MS > at // HOUR_MS or now < at - HOUR_MS
