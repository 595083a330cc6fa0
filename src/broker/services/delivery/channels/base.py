"""What every channel is: something that takes messages and reports an answer for each."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from broker.domain.message import Answer
from broker.events.sealing import Plain


class Delivery(msgspec.Struct, eq=False):
    """One attempt at one message, in plain text; never logged. `entry` and `count` are the claim's fence."""

    message_id: bytes
    client_id: str
    plain: Plain
    cycle: int
    attempt: int
    worker_id: str
    entry: str
    count: int
    queued_at: int
    """Milliseconds since the epoch."""
    target: str | None = None
    secret: bytes | None = None
    cancelled: bool = False
    answered: bool = False
    task: asyncio.Task[Any] | None = None
    item: Any = None
    """The worker's own record of it."""

    def __repr__(self) -> str:
        return f"<Delivery {self.message_id.hex()}>"

    def cancel(self) -> None:
        """The claim was lost: whatever comes of it will not be recorded."""
        self.cancelled = True
        if self.task is not None:
            self.task.cancel()


Report = Callable[[Delivery, Answer], None]


class Channel(ABC):
    """A way to recipients. One instance per process, used by many batches at once."""

    name: str

    @abstractmethod
    async def deliver(self, deliveries: Sequence[Delivery], report: Report) -> None:
        """Attempt all, calling `report` for each that was not cancelled as soon as its answer is known."""

    async def aclose(self) -> None:  # noqa: B027 - a channel without connections has nothing to close
        """Close connections."""


class EachChannel(Channel):
    """A channel that handles every message for itself, all of a batch at the same time."""

    @abstractmethod
    async def deliver_one(self, delivery: Delivery) -> Answer:
        """The recipient's answer."""

    async def deliver(self, deliveries: Sequence[Delivery], report: Report) -> None:
        """One task each, so that a slow recipient keeps nobody waiting; a defect is raised at the end."""
        loop = asyncio.get_running_loop()
        for delivery in deliveries:
            delivery.task = loop.create_task(self._one(delivery, report))
        tasks = [delivery.task for delivery in deliveries if delivery.task is not None]
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    async def _one(self, delivery: Delivery, report: Report) -> None:
        answer = await self.deliver_one(delivery)
        delivery.task = None
        if not delivery.cancelled:
            report(delivery, answer)
