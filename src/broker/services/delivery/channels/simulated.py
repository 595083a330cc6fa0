"""Recipients that do not exist: chosen rates of success, refusal and delay, for trials and load.

What their targets say is `broker.domain.simulation`'s.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from broker.domain import simulation
from broker.domain.message import Accepted, Answer, Failed, NeedsPerson, Refused
from broker.domain.simulation import Rates
from broker.errors import ValidationError
from broker.services.delivery.channels.base import Channel, Delivery, Report


def _answer(rates: Rates, delivery: Delivery) -> Answer:
    """What this recipient says to this attempt."""
    if delivery.attempt <= rates.failures:
        return Failed("simulated failure")
    if rates.success >= 1:
        return Accepted(200)
    source = random if rates.seed is None else random.Random(_seed(rates, delivery))
    draw = source.random()
    if draw < rates.success:
        return Accepted(200)
    if draw < rates.success + rates.permanent:
        return Refused("simulated permanent refusal", 410, permanent=True)
    return Failed("simulated failure")


def _seed(rates: Rates, delivery: Delivery) -> str:
    return f"{rates.seed}:{delivery.message_id.hex()}:{delivery.cycle}:{delivery.attempt}"


class Simulated(Channel):
    """Answers by itself, after its delay."""

    name = "simulated"

    async def deliver(self, deliveries: Sequence[Delivery], report: Report) -> None:
        """All messages of one delay wait together."""
        delayed: dict[float, list[tuple[Delivery, Answer]]] = {}
        for delivery in deliveries:
            try:
                rates = simulation.parse(delivery.target)
            except ValidationError as error:
                report(delivery, NeedsPerson(f"{error.reason}."))
                continue
            answer = _answer(rates, delivery)
            if rates.delay:
                delayed.setdefault(rates.delay, []).append((delivery, answer))
            else:
                report(delivery, answer)
        if delayed:
            await asyncio.gather(*(_later(delay, answers, report) for delay, answers in delayed.items()))


async def _later(delay: float, answers: list[tuple[Delivery, Answer]], report: Report) -> None:
    await asyncio.sleep(delay)
    for delivery, answer in answers:
        if not delivery.cancelled:
            report(delivery, answer)
