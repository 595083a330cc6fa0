"""Whether what a command changed can be read yet."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

from broker import clock
from broker.errors import StoreUnavailable
from broker.events import positions as places
from broker.events.positions import CONTROL, Position
from broker.events.trust import Trust

WITHIN: Final = 1.0
"""Seconds that an answer waits for its read model."""


class ReadModels(Protocol):
    """The read models' database; both raise StoreUnavailable."""

    async def ping(self) -> None: ...

    async def wait_passed(
        self, position: Position, projection: str = "messages", *, within: float = 1.0
    ) -> bool: ...


async def wait(
    models: ReadModels | None, positions: Sequence[Position], projection: str, *, within: float = WITHIN
) -> bool:
    """Wait, bounded, until the projection has applied these events; False when that cannot be said."""
    if not positions:
        return True
    if models is None:
        return False
    last: dict[str, Position] = {}
    for position in positions:
        last[position.stream] = max(position, last.get(position.stream, position))
    try:
        seen = [models.wait_passed(position, projection, within=within) for position in last.values()]
        return all(await asyncio.gather(*seen))
    except StoreUnavailable:
        # The change itself is durable; only whether the table has it is unknown.
        return False


async def followed(trust: Trust, positions: Sequence[Position], *, within: float = WITHIN) -> bool:
    """Wait, bounded, until this process itself knows of these events on `control`."""
    give_up = clock.monotonic() + within
    while positions and _known(trust) < max(positions):
        if clock.monotonic() > give_up:
            return False
        await asyncio.sleep(0.01)
    return True


def _known(trust: Trust) -> Position:
    revision = trust.revision
    return places.start(CONTROL) if revision is None else places.at(CONTROL, revision)
