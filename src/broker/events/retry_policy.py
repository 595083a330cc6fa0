"""The retry policy of the settings: the same for workers, for outcomes reported directly, and for repairs."""

from __future__ import annotations

from broker.domain.retry import RetryPolicy
from broker.settings import Settings


def of(settings: Settings) -> RetryPolicy:
    """When an installation tries again, and how often."""
    return RetryPolicy(
        schedule=settings.retry_schedule,
        interval=settings.retry_interval,
        factor=settings.retry_factor,
        max_interval=settings.retry_max_interval,
        jitter=settings.retry_jitter,
        max_attempts=settings.max_attempts,
    )
