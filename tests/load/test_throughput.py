"""Sustained load, bursts and a compressed day: offered open-loop, every message accounted for by its id.

The short form of a case has its rate and less of its time; `--full` has all of it.
"""

from __future__ import annotations

import pytest

from support.load.accounting import account
from support.load.offering import Request, offer
from support.load.watching import watching
from support.system import System, eventually

pytestmark = pytest.mark.timeout(0)


async def sustained(system: System, rate: float, seconds: float, told) -> tuple:
    async with watching(system) as watch:
        offered = await offer(system, rate, seconds, told=told)
    found = await account(system, offered)
    return offered, watch, found


@pytest.mark.case("TC-L-001")
async def test_one_a_second(system: System, full, told, record) -> None:
    """One message a second for an hour: 95 % succeed, 1 s on average and 5 s at p99; none lost, none doubled."""
    seconds = 3600 if full else 15
    offered, watch, found = await sustained(system, 1, seconds, told)
    record("TC-L-001", f"1/s for {seconds} s", **offered.figures(), **watch.figures(), **found.figures())
    assert offered.success_rate >= 0.95
    assert offered.average < 1
    assert offered.quantile(0.99) < 5
    assert (found.lost, found.doubled) == ([], [])


@pytest.mark.case("TC-L-002")
async def test_ten_a_second(system: System, full, told, record) -> None:
    """Ten a second for ten minutes: 95 % succeed, and the queue does not grow."""
    seconds = 600 if full else 12
    offered, watch, found = await sustained(system, 10, seconds, told)
    record("TC-L-002", f"10/s for {seconds} s", **offered.figures(), **watch.figures(), **found.figures())
    assert offered.success_rate >= 0.95
    depth = watch.values("open")
    half = len(depth) // 2
    # Never more than a few seconds' worth, and no more later than earlier.
    assert max(depth[half:]) <= max(30, 2 * max(depth[:half]))
    assert (found.lost, found.doubled) == ([], [])


@pytest.mark.case("TC-L-003")
async def test_a_burst_of_a_hundred_a_second(system: System, full, told, record) -> None:
    """A hundred a second for a minute: 90 % succeed; afterwards the queue is empty and a message goes through."""
    seconds = 60 if full else 8
    offered, watch, found = await sustained(system, 100, seconds, told)
    record("TC-L-003", f"100/s for {seconds} s", **offered.figures(), **watch.figures(), **found.figures())
    assert offered.success_rate >= 0.90
    assert (found.lost, found.doubled) == ([], [])
    assert watch.values("open")[-1] <= 100
    after = await offer(system, 5, 1)
    assert after.success_rate == 1
    await eventually(lambda: system.status()["healthy"])


@pytest.mark.case("TC-L-004")
async def test_a_day_compressed(system: System, full, told, record) -> None:
    """A day's 100,000 messages in minutes instead of 24 hours, in batches: none lost, no slower at the end.

    Offered fast enough to be delivered within two minutes, which is the product's own aim.
    """
    messages = 100_000 if full else 5_000
    rate = 1500
    async with watching(system) as watch:
        offered = await offer(system, rate, messages / rate, batch=100, told=told)
    found = await account(system, offered, within=300)
    form = f"compressed: {messages} messages at {rate}/s in batches of 100"
    settled = {"until_settled_s": round(found.settled_at - offered.started, 1)}
    record("TC-L-004", form, **settled, **offered.figures(), **watch.figures(), **found.figures())
    assert offered.success_rate == 1
    assert (found.lost, found.doubled) == ([], [])
    half = len(offered.requests) // 2
    halves = [
        sorted(one.seconds for one in part) for part in (offered.requests[:half], offered.requests[half:])
    ]
    medians = [part[len(part) // 2] for part in halves]
    assert medians[1] <= max(0.5, 3 * medians[0]), f"slower and slower: {medians}"


async def test_a_message_that_no_answer_named_is_a_double(system: System) -> None:
    """In the log under an id of nobody's: doubled, unless a request without an answer explains it."""
    offered = await offer(system, 10, 0.3)
    [hidden] = offered.requests[0].ids
    assert (await account(system, offered)).doubled == []
    offered.requests[0] = Request(offered.requests[0].seconds, 0, [])
    assert (await account(system, offered)).doubled == []
    del offered.requests[0]
    assert (await account(system, offered)).doubled == [hidden]
