"""Checking the history itself, where it lies: every event linked anew and held against the digests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from broker.events import chain, digests
from broker.events.digests import Digest, StreamDigest
from broker.events.exported_source import Linked, Source, linked
from broker.events.exported_walk import HistoryAltered
from broker.events.positions import Position, start


async def checked(source: Source, known: Sequence[Digest], stream: str) -> AsyncGenerator[list[Linked]]:
    """Every event of a stream, those after the newest digest too. Raises HistoryAltered, as soon as known.

    `known` are all digests, from the first on.
    """
    waiting = [(digest.number, digests.of(digest.streams, stream)) for digest in reversed(known)]
    count = 0
    async with aclosing(linked(source, stream, start(stream), chain.GENESIS)) as blocks:
        async for block in blocks:
            for one in block:
                while waiting and waiting[-1][1].end(stream) < one.stored.position:
                    number, state = waiting.pop()
                    if state.events != count:
                        raise _altered(stream, number, state, count, None)
                count += 1
                if waiting and waiting[-1][1].end(stream) == one.stored.position:
                    number, state = waiting[-1]
                    if (state.events, state.head) != (count, one.hash.hex()):
                        raise _altered(stream, number, state, count, one.stored.position)
            yield block
    for number, state in reversed(waiting):
        if state.events != count:
            raise _altered(stream, number, state, count, None)


def _altered(
    stream: str, number: int, state: StreamDigest, count: int, at: Position | None
) -> HistoryAltered:
    found = (
        f"at {at} another hash was found"
        if at is not None and state.events == count
        else f"{count} were found"
    )
    return HistoryAltered(
        f"Digest {number} vouches for {state.events} events of stream {stream} up to {state.last}: {found}."
    )
