"""Wait for a condition, never for a time."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any


async def wait_until(condition: Callable[[], Any], *, within: float = 30.0, what: str = "") -> Any:
    """Poll `condition` (sync or async) until it is truthy and give its value; fail after `within` seconds."""
    deadline = asyncio.get_running_loop().time() + within
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"not within {within} s: {what or condition}")
        await asyncio.sleep(0.01)  # the poll itself
