"""A second after a revocation is on record nobody gets in with that certificate, whatever Redis' link does.

This is a promise and no speed: a process that cannot prove that its registry is younger than `trust_max_age` refuses.
"""

from __future__ import annotations

import asyncio

import pytest

from support.calling import Caller
from support.proxy import proxy_to_unix
from support.serving import connection
from support.waiting import wait_until
from support.world import SYSTEM

BOUND = 1.0
"""Seconds; what the default of `trust_max_age` promises."""


@pytest.mark.case("TC-P-005", "TC-S-005")
@pytest.mark.parametrize("link", ["pass", "silent", "cut"])
async def test_no_request_begun_a_second_later_is_accepted(world, valkey, link):
    """On a connection that was open before; with the follower's link to Redis well, hung and cut in that moment."""
    issued = await world.producer("short")
    loop = asyncio.get_running_loop()
    accepted: list[float] = []
    async with (
        proxy_to_unix(str(valkey.socket)) as proxy,
        world.gateway(trust_url=f"redis://127.0.0.1:{proxy.port}/0") as gateway,
        connection(gateway.port, world.contexts["short"]) as raw,
    ):
        caller = Caller(gateway.port, world.contexts["short"])

        async def status() -> int:
            begun = loop.time()
            answer = await caller.submit(raw=raw)
            if answer.status == 202:
                accepted.append(begun)
            return answer.status

        async def answers(wanted: int) -> bool:
            return await status() == wanted

        await wait_until(lambda: answers(202))
        proxy.mode = link
        if link == "cut":
            proxy.cut()
        await world.certificates.revoke_certificate(
            fingerprint=issued.fingerprint, reason="keyCompromise", actor=SYSTEM
        )
        revoked = loop.time()
        refusals = 0
        while loop.time() <= revoked + BOUND or refusals < 3:
            refusals += await status() in {403, 503}
        assert max(accepted) <= revoked + BOUND
        proxy.mode = "pass"
        proxy.cut()
        await wait_until(lambda: answers(403))
