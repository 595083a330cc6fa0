"""Processes that end at a chosen word: with the database, or on the way into the archive."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from broker.events.archive.storage import LocalStorage
from broker.events.codec import Stored
from broker.events.positions import Position
from broker.projections.rebuild.sources import LogSource
from broker.projections.store import Store


class Killed(BaseException):
    """The process is gone: no handler of its own may do anything any more."""


class Fall(NamedTuple):
    """What happens at a statement: before it is sent, or when its answer would arrive.

    `word` is its number, from 0 on, counted from the first that begins with `since`.
    """

    word: int
    when: Literal["before", "after"] = "after"
    what: Literal["dies", "cut off"] = "dies"
    since: str = ""


class MortalStore(Store):
    """A store of a process that dies, or whose connection breaks, at one of its statements."""

    def __init__(self, url: str, fall: Fall | None = None) -> None:
        super().__init__(url)
        self.fall = fall
        self.fallen = False
        self._words = 0

    @property
    def dead(self) -> bool:
        return self.fallen and self.fall is not None and self.fall.what == "dies"

    async def _connect(self) -> Any:
        self._breathe()
        connection = await super()._connect()
        say = connection.query

        async def query(*statement: Any) -> Any:
            self._breathe()
            if self.fall is None or self.fallen:
                return await say(*statement)
            if not self._words and not str(statement[0]).startswith(self.fall.since):
                return await say(*statement)
            self._words += 1
            last = self._words > self.fall.word
            if last and self.fall.when == "before":
                self._end()
            answer = await say(*statement)
            if last:
                self._end()
            return answer

        connection.query = query
        return connection

    def _breathe(self) -> None:
        if self.dead:
            raise Killed

    def _end(self) -> None:
        self.fallen = True
        self._breathe()
        raise ConnectionResetError("cut off")


class MortalStorage(LocalStorage):
    """A directory in which the process dies at its `put` number `fall`, before or after it (None: never)."""

    def __init__(self, root: Path, fall: int | None, *, after: bool = False) -> None:
        super().__init__(root)
        self._left = fall
        self._after = after

    def put(self, name: str, content: bytes) -> None:
        """As in Storage."""
        last = self._left == 0
        if self._left is not None:
            self._left -= 1
        if last and not self._after:
            raise Killed
        super().put(name, content)
        if last:
            raise Killed


class InterruptedSource:
    """A source whose reader waits, between blocks and at their end, while something else happens."""

    def __init__(self, of: LogSource, meanwhile: Callable[[], Awaitable[None]]) -> None:
        self._of = of
        self._meanwhile = meanwhile
        self.streams = of.streams
        self.incarnations = of.incarnations
        self.totals = of.totals

    async def blocks(self, stream: str, after: Position) -> AsyncGenerator[list[Stored]]:
        """As in Source."""
        async for block in self._of.blocks(stream, after):
            yield block
            await self._meanwhile()
        await self._meanwhile()
