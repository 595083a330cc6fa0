"""The worker's role: assembly out of the settings, health and metrics on their port."""

from __future__ import annotations

import asyncio

import httpx
import msgspec
import pytest

from broker.domain.message import Accepted, OwnSideAway
from broker.domain.retry import RetryPolicy
from broker.services.delivery.channels.registry import build
from broker.services.delivery.role import WorkerRole, limits
from broker.settings import Settings
from support.pki import Pki
from support.rig import Recorder
from support.waiting import wait_until


@pytest.fixture(scope="module")
def pki(tmp_path_factory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


def test_the_defaults_are_the_documented_ones():
    """Every 30 s, five attempts; three crashes park."""
    found = limits(Settings())
    assert found.retry == RetryPolicy("fixed", 30.0, 2.0, 3600.0, 0.0, 5)
    assert (found.concurrency, found.crash_limit, found.default_channel) == (256, 3, "inbox")
    assert found.outcomes_kept_ms == 2 * 24 * 3_600_000
    assert limits(Settings(outcomes_kept=60.0)).outcomes_kept_ms == 60_000


def test_the_whole_retry_policy_is_set():
    """Nothing of it stays at a default that the settings have changed, whoever asks."""
    settings = Settings(
        retry_schedule="exponential",
        retry_interval=1.5,
        retry_factor=3.0,
        retry_max_interval=60.0,
        retry_jitter=0.25,
        max_attempts=7,
    )
    assert limits(settings).retry == RetryPolicy("exponential", 1.5, 3.0, 60.0, 0.25, 7)


def test_the_channels_that_clients_can_be_routed_to(pki):
    """Every channel that a route may name exists."""
    from broker.domain.clients import CHANNELS

    cert, key = pki.server
    assert set(build(Settings(), cert=cert, key=key, ca=pki.ca)) == set(CHANNELS)


async def test_health_and_metrics_tell_what_the_worker_does(rig, pki, tmp_path):
    """Healthy while it works, 503 with the reason while our own side is away, counters on /metrics."""
    cert, key = pki.server
    settings = msgspec.structs.replace(
        Settings(), data_dir=tmp_path, worker_metrics_port=0, default_channel="simulated", grace_period=5.0
    )
    away = False
    channel = Recorder(lambda _: OwnSideAway("maintenance") if away else Accepted(200))
    role = WorkerRole(
        settings, redis=rig.redis, redis_url=rig.url, keys=rig.keys, identity=rig.identity, sealer=rig.sealer,
        trust=rig.trust, cert=cert, key=key, ca=pki.ca, channels={"simulated": channel},
    )  # fmt: skip
    stop, bound = asyncio.Event(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(role.run(stop, bound.set_result))
    url = f"http://127.0.0.1:{await bound}"
    async with httpx.AsyncClient() as client:
        await rig.all_finished(await rig.submit(5))
        answer = await client.get(f"{url}/health")
        assert (answer.status_code, answer.json()["status"]) == (200, "healthy")
        away = True
        messages = await rig.submit(1)
        await wait_until(lambda: "channel:simulated" in role.worker.waits_for)
        answer = await client.get(f"{url}/health")
        assert answer.status_code == 503
        assert answer.json()["checks"]["channel:simulated"] == "maintenance"
        away = False
        await rig.all_finished(messages)
        text = (await client.get(f"{url}/metrics")).text
    assert 'broker_delivery_attempts_total{channel="simulated",outcome="delivered"}' in text
    for name in ("in_hand", "lost_claims_total", "breaker_open", "taken_over_total", "crashes_total"):
        assert f"broker_delivery_{name}" in text, name
    stop.set()
    await task
