"""One worker process out of ready-made parts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from broker.events import retry_policy
from broker.events.connection import Redis
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.events.sealing import Sealer
from broker.events.trust import Trust
from broker.services.delivery.channels import registry
from broker.services.delivery.channels.base import Channel
from broker.services.delivery.worker import Limits, Worker
from broker.settings import Settings
from broker.web.application import serve_sidecar
from broker.web.health import Check


def limits(settings: Settings) -> Limits:
    """The worker's share of the settings."""
    return Limits(
        concurrency=settings.worker_concurrency,
        claim_ttl=settings.claim_ttl,
        heartbeat_ttl=settings.heartbeat_ttl,
        crash_limit=settings.crash_limit,
        grace=settings.grace_period,
        default_channel=settings.default_channel,
        outcomes_kept_ms=settings.outcomes_kept_ms,
        retry=retry_policy.of(settings),
    )


class WorkerRole:
    """Delivers until told to stop, with `/metrics` and `/health` on the worker's metrics port.

    `trust` must be running. `redis_url` leads to the same server as `redis`: every partition reads on a
    connection of its own. `cert` and `key` are the worker's, `ca` is ours; PEM files.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        redis: Redis,
        redis_url: str,
        keys: LogKeys,
        identity: LogIdentity,
        sealer: Sealer,
        trust: Trust,
        cert: Path,
        key: Path,
        ca: Path,
        channels: Mapping[str, Channel] | None = None,
    ) -> None:
        self._settings = settings
        self._trust = trust
        self.worker = Worker(
            redis=redis,
            redis_url=redis_url,
            keys=keys,
            identity=identity,
            clients=trust,
            opener=sealer,
            channels=channels or registry.build(settings, cert=cert, key=key, ca=ca),
            limits=limits(settings),
            redis_timeout=settings.redis_timeout,
        )

    async def run(self, stop: asyncio.Event, on_bound: Callable[[int], None] | None = None) -> None:
        """Raises listening.CannotListen when the metrics port is taken."""
        settings = self._settings
        served = asyncio.Event()
        sidecar = asyncio.create_task(
            serve_sidecar(
                self.checks,
                role="worker",
                host=settings.metrics_host,
                port=settings.worker_metrics_port,
                stop=served,
                on_bound=on_bound,
            )
        )
        sidecar.add_done_callback(lambda _: stop.set())
        try:
            if await self._known(stop):
                await self.worker.run(stop)
        finally:
            # Health stays readable while the last attempts are finished.
            served.set()
            await sidecar

    async def checks(self) -> dict[str, Check]:
        """Everything that the worker waits for, by name."""
        trusted = self._trust.proved_at is not None
        found = {
            "log": Check(ok=True),
            "trust": Check(trusted, "" if trusted else str(self._trust.failure or "not yet followed")),
        }
        for gate, reason in self.worker.waits_for.items():
            # A single client's keys or a single message do not make the worker unhealthy.
            if not gate.startswith(("client:", "message:")):
                found[gate] = Check(ok=False, detail=reason)
        return found

    async def _known(self, stop: asyncio.Event) -> bool:
        """Wait until the registry was read once: routes and keys come from it. False when told to stop."""
        waiting = {asyncio.ensure_future(self._trust.wait_fresh()), asyncio.ensure_future(stop.wait())}
        _, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return not stop.is_set()
