"""What every surface that serves history does with it: exports sent piece by piece, digests checked again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import msgspec

from broker.errors import BrokerError
from broker.events import digests, digests_making
from broker.events.digests import Signed
from broker.events.exported_check import FINDINGS
from broker.events.exported_formats import Format
from broker.events.exported_session import Export
from broker.events.exported_source import Source
from broker.events.exported_walk import Walk
from broker.events.positions import Position


class Checked(msgspec.Struct, frozen=True):
    """`problem` says what is wrong, None where nothing is. `until`: when the newest digest was made."""

    problem: str | None
    digests: int
    events: int
    until: str | None


async def lines(begun: Export, form: Format, after: Position | None = None) -> AsyncIterator[bytes]:
    """The export's file, piece by piece; one that goes on after a position has no head."""
    if after is None:
        yield form.head()
    async with aclosing(begun.walk.lines(after)) as blocks:
        async for block in blocks:
            yield form.encode(block)
            # Others' requests are served in between.
            await asyncio.sleep(0)
    yield form.end()


async def walk(source: Source) -> Walk:
    """The history up to the newest digest. Raises DigestInvalid and what reading it does."""
    return Walk(source, digests.chained(await digests_making.recorded(source)))


async def check(source: Source, count: int) -> Checked:
    """Every digest checked, and the events of the last `count` of them linked anew. Raises LogUnavailable."""
    signed: list[Signed] = []
    events, problem, until = 0, None, None
    try:
        signed = await digests_making.recorded(source)
        known = digests.chained(signed)
        until = known[-1].at if known else None
        events = await Walk(source, known).check(count)
    except BrokerError as error:
        if error.code not in FINDINGS:
            raise
        problem = str(error)
    return Checked(problem, len(signed), events, until)
