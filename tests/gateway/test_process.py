"""The gateway as a process of its own: killed under load, two on one port, without MySQL and server."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path

import pytest

from broker.embedded.valkey import Valkey
from broker.settings import Settings
from support import gateways
from support.calling import MESSAGE, Caller
from support.gateways import demo, in_log, process, ready
from support.waiting import wait_until


@pytest.fixture
async def installed(own_valkey: Valkey, tmp_path: Path) -> Settings:
    return await gateways.install(own_valkey, tmp_path)


async def submit_until_it_dies(caller: Caller, taken: list[str]) -> None:
    """One message after the other, for as long as somebody answers."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        while (answer := await caller.submit()).status == 202:
            taken.append(answer.json["message_id"])


@pytest.mark.case("TC-P-009", "TC-P-010")
async def test_a_gateway_killed_under_load_loses_nothing_it_acknowledged(installed, own_valkey):
    """With kill -9 of gateway and Valkey in the middle: every 202 is in the log once, after a restart too."""
    caller, taken = demo(installed), []
    for rounds in range(3):
        async with process(installed) as gateway:
            await ready(caller)
            goal = len(taken) + 50
            load = [asyncio.create_task(submit_until_it_dies(caller, taken)) for _ in range(16)]
            await wait_until(lambda goal=goal: len(taken) >= goal)
            if rounds == 1:
                await own_valkey.kill()
            gateway.send_signal(signal.SIGKILL)
            await gateway.wait()
            await asyncio.gather(*load)
        if rounds == 1:
            await own_valkey.start()
    found = await in_log(installed)
    assert len(found) == len(set(found))
    assert set(taken) <= set(found)
    assert len(taken) >= 150


async def test_two_gateways_share_a_port_and_leave_politely(installed):
    """Both take messages; SIGTERM of one loses nothing, and the other goes on."""
    caller, taken = demo(installed), []
    async with process(installed) as one, process(installed) as two:
        await ready(caller)
        answers = await asyncio.gather(*(caller.submit() for _ in range(40)))
        assert {answer.status for answer in answers} == {202}
        load = [asyncio.create_task(submit_until_it_dies(caller, taken)) for _ in range(8)]
        await wait_until(lambda: len(taken) >= 20)
        one.terminate()
        assert await one.wait() == 0
        await ready(caller)
        answer = await caller.submit(MESSAGE)
        assert answer.status == 202
        two.terminate()
        assert await two.wait() == 0
        await asyncio.gather(*load)
    found = await in_log(installed)
    assert set(taken) | {answer.json["message_id"]} <= set(found)
    assert len(found) == len(set(found))
