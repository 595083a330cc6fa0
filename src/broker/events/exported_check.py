"""Checking the history itself, where it lies: every event linked anew and held against the digests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final

from broker.errors import UnknownEvent
from broker.events import digests
from broker.events.archive.reader import HistoryGap
from broker.events.archive.segments import ArchiveDamaged
from broker.events.digests import Digest, DigestInvalid, StreamDigest
from broker.events.exported_source import Linked, Source, linked
from broker.events.exported_walk import HistoryAltered
from broker.events.positions import Position, start

FINDINGS: Final = {HistoryGap.code, ArchiveDamaged.code, HistoryAltered.code, DigestInvalid.code}
"""Codes of errors that say something of the history, not of how it is reached."""


async def checked(
    source: Source, known: Sequence[Digest], stream: str, *, whole: bool = True, since: int = 0
) -> AsyncGenerator[list[Linked]]:
    """Every event of a stream, those after the newest digest too. Raises HistoryAltered, as soon as known.

    `known` are all digests, from the first on. `whole`: the source has every event that they vouch for.
    `since`: the number of a digest to begin after, which is taken at its word.
    """
    states = [(digest.number, digests.of(digest.streams, stream)) for digest in reversed(known[since:])]
    waiting = [(number, state.end(stream), state) for number, state in states]
    begin = digests.of(known[since - 1].streams, stream) if since else digests.UNCOVERED
    count, last, head = begin.events, begin.end(stream), bytes.fromhex(begin.head)
    async with aclosing(linked(source, stream, last, head)) as blocks:
        async for block in blocks:
            for one in block:
                position = one.stored.position
                while waiting and waiting[-1][1] < position:
                    _held(known, stream, waiting.pop(), (count, last, head))
                count, last, head = count + 1, position, one.hash
                if waiting and waiting[-1][1] == position:
                    _held(known, stream, waiting[-1], (count, last, head))
            yield block
    for each in reversed(waiting):
        if whole or each[1] <= last:
            _held(known, stream, each, (count, last, head))


def _held(
    known: Sequence[Digest],
    stream: str,
    said: tuple[int, Position, StreamDigest],
    found: tuple[int, Position, bytes],
) -> None:
    """Raises HistoryAltered unless a digest says just this: how many events there are, the last, its hash."""
    (number, end, state), (count, last, head) = said, found
    if (state.events, end, state.head) == (count, last, head.hex()):
        return
    before = digests.of(known[number - 2].streams, stream) if number > 1 else digests.UNCOVERED
    if state.events != count:
        other = f"{count} were found"
    else:
        other = "another hash was found" if end == last else f"the last that was found is {last.entry_id}"
    raise HistoryAltered(
        f"Digest {number} vouches for {state.events} events of stream {stream} up to {state.last}: {other}.",
        f"stream {stream} after {before.last}, up to {state.last}",
    )


async def vouched(source: Source, known: Sequence[Digest], stream: str) -> int:
    """How many events of a stream that may end early are right by these digests. Raises as `checked`.

    No digest goes on after what is no event: one that does was made when that was not there.
    """
    last = start(stream)
    states = [digests.of(digest.streams, stream) for digest in known]
    try:
        async with aclosing(checked(source, known, stream, whole=False)) as blocks:
            async for block in blocks:
                last = block[-1].stored.position
    except UnknownEvent as error:
        if any(state.end(stream) > last for state in states):
            told = f"After {last} comes what is no event, where digests vouch for others. {error.detail}"
            raise HistoryAltered(told, f"stream {stream} after {last.entry_id}") from None
    return max((state.events for state in states if state.end(stream) <= last), default=0)
