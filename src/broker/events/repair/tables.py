"""What a repair asks of the database, and tells it; `projections.repairing` answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

import msgspec

from broker.events.codec import Stored
from broker.events.open_messages import FinishedMessage
from broker.events.positions import Position


class Reader(msgspec.Struct, frozen=True):
    """A read model's checkpoint on a stream; `events` of the stream lie up to it."""

    projection: str
    position: Position
    events: int
    incarnation: str


class Tables(Protocol):
    """Everything raises StoreUnavailable."""

    async def readers(self) -> dict[str, dict[str, Reader]]:
        """Every checkpoint, by stream and projection."""
        ...

    def wanted(self, stream: str) -> Sequence[str]:
        """The projections that follow a stream."""
        ...

    def recorded(self, stream: str, after: Position) -> AsyncIterator[list[Stored]]:
        """The audit log's events after `after`, each proved to follow on the one before.

        Raises AuditChanged where one does not.
        """
        ...

    async def adopt(self, incarnations: Mapping[str, str]) -> None:
        """Let the read models follow the streams' next incarnations; what is on its way comes to nothing."""
        ...

    async def outcomes(self, message_ids: Sequence[bytes]) -> list[FinishedMessage]:
        """Those of these messages that ended, as the tables know it."""
        ...

    async def submitted(self, stream: str, after: Position, most: int) -> list[bytes]:
        """Messages that the tables know and that were submitted after `after`: the first `most` ids."""
        ...

    async def correct(
        self, stream: str, incarnation: str, places: Mapping[str, tuple[Position, int]]
    ) -> None:
        """Set where read models that follow this incarnation stand, and how many events lie up to there."""
        ...
