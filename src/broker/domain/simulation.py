"""Simulated recipients: what a route's target says of them. Pure: no I/O.

Target: `simulated:success=0.9,permanent=0.02,delay=20ms,seed=7`, every part optional. The rest of the
probability is temporary failure. With a seed, what happens depends only on seed, message and attempt.
`failures=1` lets the first attempt of each cycle fail, whatever the rates.
"""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

from broker.errors import ValidationError

MAX_DELAY = 3600.0
_DELAY = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s)\Z")
_UNIT = {"ms": 0.001, "s": 1.0}
_COUNT = re.compile(r"[0-9]{1,9}\Z")


class Rates(msgspec.Struct, frozen=True):
    """Rates from 0 to 1; `delay` in seconds; `failures`: attempts of each cycle that fail first."""

    success: float = 1.0
    permanent: float = 0.0
    delay: float = 0.0
    seed: int | None = None
    failures: int = 0


@lru_cache(maxsize=1024)
def parse(target: str | None) -> Rates:
    """The rates that a target names. Raises ValidationError."""
    text = (target or "").removeprefix("simulated").removeprefix(":")
    values: dict[str, float | int] = {}
    for part in filter(None, text.split(",")):
        name, _, value = (piece.strip() for piece in part.partition("="))
        try:
            values[name] = _value(name, value)
        except ValueError:
            raise ValidationError("target", f"simulated: {part[:64]!r} is not understood") from None
    rates = msgspec.convert(values, Rates)
    if rates.success + rates.permanent > 1:
        raise ValidationError("target", "simulated: success and permanent add up to more than 1")
    return rates


def _value(name: str, value: str) -> float | int:
    if name == "delay":
        found = _DELAY.match(value)
        if found is None or float(found[1]) * _UNIT[found[2]] > MAX_DELAY:
            raise ValueError(value)
        return float(found[1]) * _UNIT[found[2]]
    if name in {"seed", "failures"}:
        if not _COUNT.match(value):
            raise ValueError(value)
        return int(value)
    rate = float(value)
    if name not in {"success", "permanent"} or not 0 <= rate <= 1:
        raise ValueError(value)
    return rate
