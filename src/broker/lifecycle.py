"""Starting, stopping and waiting: what every long-lived process shares."""

from __future__ import annotations

import asyncio
import gc
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Protocol


class Service(Protocol):
    """A long-lived thing. `run` returns soon after `stop` is set, with its work finished or released."""

    async def run(self, stop: asyncio.Event) -> None: ...


def backoff(base: float = 0.05, ceiling: float = 5.0) -> Iterator[float]:
    """Endless waits in seconds, exponential with full jitter, never under half of the step.

    Full jitter after https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/.
    """
    step = base
    while True:
        yield random.uniform(step / 2, step)
        step = min(step * 2, ceiling)


async def wait_for(event: asyncio.Event, seconds: float) -> bool:
    """Wait no longer than that; whether `event` is set.

    Not by `asyncio.wait_for`: before Python 3.12 it forgets a cancellation that comes when the wait is over.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


async def sleep_or_stop(seconds: float, stop: asyncio.Event) -> bool:
    """Wait; True when `stop` was set meanwhile."""
    return await wait_for(stop, seconds)


def stop_on_signals(stop: asyncio.Event) -> None:
    """Set `stop` on SIGTERM and SIGINT (Windows: Ctrl-C and Ctrl-Break)."""
    loop = asyncio.get_running_loop()
    for name in ("SIGTERM", "SIGINT", "SIGBREAK"):
        number = getattr(signal, name, None)
        if number is None:
            continue
        try:
            loop.add_signal_handler(number, stop.set)
        except NotImplementedError:  # Windows' event loops have no signal handlers of their own
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))


def calm_collector() -> None:
    """Let the garbage collector look less often; called once a process has loaded what it runs on.

    Events and requests hold no cycles, so that nearly every pass over them is for nothing: at Python's own
    thresholds 5 % of a busy process' time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@asynccontextmanager
async def running(*tasks: Awaitable[object], on_failure: Callable[[], None]) -> AsyncIterator[None]:
    """Run `tasks` beside the body; one that fails calls `on_failure`, and its error is raised at the end."""
    started = [asyncio.ensure_future(task) for task in tasks]

    def watch(task: asyncio.Future[object]) -> None:
        if not task.cancelled() and task.exception() is not None:
            on_failure()

    for task in started:
        task.add_done_callback(watch)
    try:
        yield
    finally:
        for task in started:
            task.cancel()
        results = await asyncio.gather(*started, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
            raise result
