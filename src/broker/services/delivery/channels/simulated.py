"""Recipients that do not exist: chosen rates of success, refusal and delay, for trials and load.

Target: `simulated:success=0.9,permanent=0.02,delay=20ms,seed=7`, every part optional. The rest of the
probability is temporary failure. With a seed, what happens depends only on seed, message and attempt.
`failures=1` lets the first attempt of each cycle fail, whatever the rates.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Sequence
from functools import lru_cache

import msgspec

from broker.domain.message import Accepted, Answer, Failed, NeedsPerson, Refused
from broker.services.delivery.channels.base import BadRoute, Channel, Delivery, Report

_DELAY = re.compile(r"(\d+(?:\.\d+)?)(ms|s)\Z")
_UNIT = {"ms": 0.001, "s": 1.0}


class Behaviour(msgspec.Struct, frozen=True):
    """Rates from 0 to 1; `delay` in seconds; `failures`: attempts of each cycle that fail first."""

    success: float = 1.0
    permanent: float = 0.0
    delay: float = 0.0
    seed: int | None = None
    failures: int = 0

    def answer(self, delivery: Delivery) -> Answer:
        """What this recipient says to this attempt."""
        if delivery.attempt <= self.failures:
            return Failed("simulated failure")
        if self.success >= 1:
            return Accepted(200)
        source = random if self.seed is None else random.Random(self._seed(delivery))
        draw = source.random()
        if draw < self.success:
            return Accepted(200)
        if draw < self.success + self.permanent:
            return Refused("simulated permanent refusal", 410, permanent=True)
        return Failed("simulated failure")

    def _seed(self, delivery: Delivery) -> str:
        return f"{self.seed}:{delivery.message_id.hex()}:{delivery.cycle}:{delivery.attempt}"


@lru_cache(maxsize=1024)
def parse(target: str | None) -> Behaviour:
    """The behaviour that a target names. Raises BadRoute."""
    text = (target or "").removeprefix("simulated").removeprefix(":")
    values: dict[str, float | int] = {}
    for part in filter(None, text.split(",")):
        name, _, value = (piece.strip() for piece in part.partition("="))
        try:
            values[name] = _value(name, value)
        except ValueError:
            raise BadRoute(f"simulated: {part!r} is not understood.") from None
    behaviour = msgspec.convert(values, Behaviour)
    if behaviour.success + behaviour.permanent > 1:
        raise BadRoute("simulated: success and permanent add up to more than 1.")
    return behaviour


def _value(name: str, value: str) -> float | int:
    if name == "delay":
        found = _DELAY.match(value)
        if found is None:
            raise ValueError(value)
        return float(found[1]) * _UNIT[found[2]]
    if name == "seed" or (name == "failures" and value.isdigit()):
        return int(value)
    rate = float(value)
    if name not in {"success", "permanent"} or not 0 <= rate <= 1:
        raise ValueError(value)
    return rate


class Simulated(Channel):
    """Answers by itself, after its delay."""

    name = "simulated"

    async def deliver(self, deliveries: Sequence[Delivery], report: Report) -> None:
        """All messages of one delay wait together."""
        delayed: dict[float, list[tuple[Delivery, Answer]]] = {}
        for delivery in deliveries:
            try:
                behaviour = parse(delivery.target)
            except BadRoute as error:
                report(delivery, NeedsPerson(str(error)))
                continue
            answer = behaviour.answer(delivery)
            if behaviour.delay:
                delayed.setdefault(behaviour.delay, []).append((delivery, answer))
            else:
                report(delivery, answer)
        if delayed:
            await asyncio.gather(*(_later(delay, answers, report) for delay, answers in delayed.items()))


async def _later(delay: float, answers: list[tuple[Delivery, Answer]], report: Report) -> None:
    await asyncio.sleep(delay)
    for delivery, answer in answers:
        if not delivery.cancelled:
            report(delivery, answer)
