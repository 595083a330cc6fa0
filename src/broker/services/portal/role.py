"""One portal process out of ready-made parts."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

from broker import lifecycle
from broker.domain.authority import Authority
from broker.events.accounts import Accounts
from broker.events.connection import Redis
from broker.events.keyring import Keyring
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.events.probe import Full, Probe
from broker.events.rate_leases import Limiting
from broker.events.sealing import Sealer
from broker.events.trust import Trust
from broker.projections.queries import Queries
from broker.services.portal import app, single_sign_on
from broker.services.portal.health import Checks
from broker.services.portal.parts import Parts
from broker.services.portal.tickets import Tickets
from broker.services.portal.visitors import Gate
from broker.settings import Settings
from broker.web import tls
from broker.web.rate_limit import RateLimits
from broker.web.serving import serve_surface


class PortalRole:
    """Serves pages until told to stop: in plain HTTP on a loopback address, else over TLS.

    `trust` must be running. `cert`, `key` and `ca` are PEM files, needed only where it is not loopback;
    the settings may name a certificate that browsers know. Raises SettingsError.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        redis: Redis,
        keys: LogKeys,
        identity: LogIdentity,
        keyring: Keyring,
        sealer: Sealer,
        trust: Trust,
        queries: Queries,
        authority: Authority,
        cert: Path,
        key: Path,
        ca: Path,
        full: Full = lambda: None,
    ) -> None:
        self._settings = settings
        self._stopping = asyncio.Event()
        self._context: ssl.SSLContext | None = None
        if not settings.portal_plain:
            own = settings.portal_certificate or cert, settings.portal_key or key
            self._context = tls.browser_context(*own, ca)
        secure = self._context is not None
        self._accounts = Accounts(settings, redis, keys, identity, keyring.index_key)
        gate = Gate(self._accounts, Tickets(keyring, secure=secure), idle=settings.portal_session)
        parts = Parts(
            settings=settings,
            gate=gate,
            accounts=self._accounts,
            redis=redis,
            keys=keys,
            identity=identity,
            keyring=keyring,
            sealer=sealer,
            trust=trust,
            queries=queries,
            authority=authority,
            stopping=self._stopping,
        )
        self._limiting = Limiting(settings, redis, keys, identity, sealer)
        limits = RateLimits(address=self._limiting.address, exempt=app.unlimited)
        checks = Checks(Probe(redis, keys, identity, trust, full), queries)
        self._provider = single_sign_on.provider(settings)
        self.app = app.build(parts, checks, limits, self._provider, secure=secure)

    async def run(self, stop: asyncio.Event, on_bound: Callable[[int], None] | None = None) -> None:
        """Serve until `stop`. Starts without Redis and the database: its pages then say what is away."""
        try:
            beside = (self._accounts.failures.run(), self._tell(stop))
            async with lifecycle.running(*beside, on_failure=stop.set):
                await serve_surface(
                    self.app,
                    self._settings,
                    self._context,
                    host=self._settings.portal_host,
                    port=self._settings.portal_port,
                    proxied=True,
                    stop=stop,
                    on_bound=on_bound,
                )
        finally:
            if self._provider is not None:
                await self._provider.aclose()
            await self._accounts.aclose()
            await self._limiting.aclose()

    async def _tell(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._stopping.set()
