"""Calls to Redis: what redis-py does otherwise than we need it."""

from __future__ import annotations

import asyncio

from broker.events.connection import Redis, call


async def test_a_cancelled_call_ends_at_whatever_step_it_was(redis: Redis) -> None:
    """Whoever is told to stop while it sends, or has just sent, a command does stop."""

    async def forever() -> None:
        while True:
            await call(redis.ping())

    await redis.ping()
    for steps in range(60):
        task = asyncio.create_task(forever())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=10)
        assert done, f"it goes on after a cancellation at step {steps}"
        assert task.cancelled()
