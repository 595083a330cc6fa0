"""Who gets the places of a worker."""

from __future__ import annotations

import asyncio

from broker.services.delivery.hand import Capacity


async def test_who_waited_comes_before_who_asks_again():
    """⚠ A reader with nothing to read gives its place back and asks again at once: others must not starve."""
    capacity = Capacity(1)
    got: list[str] = []

    async def reader(name: str, times: int) -> None:
        for _ in range(times):
            places = await capacity.reserve(5)
            got.append(name)
            await asyncio.sleep(0)  # the others' turn to ask
            capacity.release(places)

    await asyncio.gather(*(reader(name, 3) for name in "abc"))
    assert got == list("abcabcabc")
    assert capacity.free == 1


async def test_places_given_to_somebody_who_left_come_back():
    """Cancelled while waiting, or at the very moment of being served: no place is lost."""
    capacity = Capacity(2)
    held = await capacity.reserve(2)
    waiting = [asyncio.create_task(capacity.reserve(1)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    capacity.release(held)
    waiting[1].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert waiting[2].result() == 1
    capacity.release(1)
    assert capacity.free == 2
