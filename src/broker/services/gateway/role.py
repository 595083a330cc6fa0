"""One gateway process out of ready-made parts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from broker.events.acceptance import Acceptance
from broker.events.appender import Appender
from broker.events.connection import Redis
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.events.probe import Full, Probe
from broker.events.rate_leases import Limiting
from broker.events.sealing import Sealer
from broker.events.trust import Trust
from broker.services.gateway import app
from broker.services.gateway.health import Checks
from broker.services.gateway.status import ReadModel, StatusReader
from broker.settings import Settings
from broker.web import tls
from broker.web.rate_limit import RateLimits
from broker.web.serving import serve_surface


class GatewayRole:
    """Serves the gateway until told to stop; requests in progress are finished and their appends awaited.

    `trust` must be running. `cert`, `key` and `ca` are PEM files, `certificate_ends_ms` is when `cert`
    expires. `full` says why the log takes nothing more, None while it does.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        redis: Redis,
        keys: LogKeys,
        identity: LogIdentity,
        sealer: Sealer,
        trust: Trust,
        appender: Appender,
        read_model: ReadModel | None,
        cert: Path,
        key: Path,
        ca: Path,
        certificate_ends_ms: int,
        full: Full = lambda: None,
    ) -> None:
        self._settings = settings
        self._appender = appender
        self._trust = trust
        self._context = tls.server_context(cert, key, ca)
        self._limiting = Limiting(settings, redis, keys, identity, sealer)
        self.app = app.build(
            trust,
            Acceptance(appender, sealer, full=full),
            StatusReader(redis, keys, read_model),
            Checks(Probe(redis, keys, identity, trust, full), certificate_ends_ms=certificate_ends_ms),
            limits=RateLimits(
                self._limiting.certificate,
                self._limiting.address,
                # Who watches over this process must not have it restarted because others ask too much.
                exempt=lambda scope: scope["path"] == app.HEALTH,
            ),
            metrics_public=settings.metrics_public,
        )

    async def run(self, stop: asyncio.Event, on_bound: Callable[[int], None] | None = None) -> None:
        """Serve until `stop`. Starts without a proof of trust: health then says what it waits for."""
        settings = self._settings
        try:
            await serve_surface(
                self.app,
                settings,
                self._context,
                host=settings.gateway_host,
                port=settings.gateway_port,
                stop=stop,
                reuse_port=settings.gateways > 1,
                in_flight=settings.gateway_in_flight,
                on_bound=on_bound,
            )
        finally:
            # A client that left does not take its message back.
            await self._appender.aclose()
            await self._limiting.aclose()
