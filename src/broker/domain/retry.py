"""When to try again: fixed or exponential, with jitter, never sooner than the recipient asked."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal

import msgspec


class RetryPolicy(msgspec.Struct, frozen=True):
    """Seconds and counts; the seeds' default is every 30 s, 5 attempts a cycle."""

    schedule: Literal["fixed", "exponential"] = "fixed"
    interval: float = 30.0
    factor: float = 2.0
    max_interval: float = 3600.0
    jitter: float = 0.0
    max_attempts: int = 5


def delay_ms(
    policy: RetryPolicy,
    attempt: int,
    retry_after: float | None = None,
    uniform: Callable[[float, float], float] = random.uniform,
) -> int:
    """Milliseconds to wait after failed attempt number `attempt` (from 1).

    `jitter` j spreads the wait over ±j of itself. `retry_after` (seconds, from the recipient) can only
    lengthen it, up to `max_interval`.
    """
    wait = policy.interval
    if policy.schedule == "exponential":
        # A float overflows to an error past 2**1024; the ceiling is reached long before.
        wait = policy.interval * policy.factor ** min(attempt - 1, 64)
    wait = min(wait, max(policy.max_interval, policy.interval))
    if policy.jitter:
        wait *= uniform(1 - policy.jitter, 1 + policy.jitter)
    if retry_after is not None:
        wait = max(wait, min(retry_after, max(policy.max_interval, policy.interval)))
    return max(1, round(wait * 1000))


def exhausted(policy: RetryPolicy, attempt: int) -> bool:
    """Whether attempt number `attempt` of the cycle was its last."""
    return attempt >= policy.max_attempts
