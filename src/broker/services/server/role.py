"""One server process out of ready-made parts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from broker import lifecycle
from broker.domain.authority import Authority
from broker.domain.retry import RetryPolicy
from broker.events.acceptance import Acceptance
from broker.events.appender import Appender
from broker.events.connection import Redis
from broker.events.keyring import Keyring
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.events.notices import Notices
from broker.events.probe import Full, Probe
from broker.events.rate_leases import Limiting
from broker.events.registration import Registration
from broker.events.sealing import Sealer
from broker.events.trust import Trust
from broker.projections.queries import Queries
from broker.projections.visibility import ReadModels
from broker.services.server import app
from broker.services.server.admin.certificates_expiry import ExpiryWatch
from broker.services.server.admin.parts import Parts
from broker.services.server.admin.routes import routes as admin_routes
from broker.services.server.audit.routes import routes as audit_routes
from broker.services.server.health import Checks
from broker.services.server.outcomes import Outcomes
from broker.services.server.people import People
from broker.services.server.reading.routes import routes as reading_routes
from broker.settings import Settings
from broker.web import tls
from broker.web.rate_limit import RateLimits
from broker.web.serving import serve_surface


class ServerRole:
    """Serves the server's API until told to stop; requests in progress are finished.

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
        keyring: Keyring,
        sealer: Sealer,
        trust: Trust,
        appender: Appender,
        database: ReadModels | None,
        authority: Authority,
        cert: Path,
        key: Path,
        ca: Path,
        certificate_ends_ms: int,
        full: Full = lambda: None,
    ) -> None:
        self._settings = settings
        self._appender = appender
        self._context = tls.server_context(cert, key, ca)
        policy = RetryPolicy(
            settings.retry_schedule,
            settings.retry_interval,
            settings.retry_factor,
            settings.retry_max_interval,
            settings.retry_jitter,
            settings.max_attempts,
        )
        self._people = People(
            settings, redis=redis, keys=keys, identity=identity, keyring=keyring, models=database
        )
        reads = reading_routes(
            self._people.admitted,
            database if isinstance(database, Queries) else None,
            self._people.access,
            redis=redis,
            keys=keys,
            identity=identity,
            sealer=sealer,
            trust=trust,
        )
        administration = admin_routes(
            Parts(
                settings=settings,
                admins=self._people.admitted.only("admin"),
                redis=redis,
                keys=keys,
                identity=identity,
                keyring=keyring,
                sealer=sealer,
                trust=trust,
                registry=self._people.registry,
                access=self._people.access,
                authority=authority,
                database=database,
            )
        )
        audit = audit_routes(
            self._people.admitted, settings, redis=redis, keys=keys, identity=identity, keyring=keyring
        )
        self._expiry = ExpiryWatch(
            trust, authority, Notices(redis, keys.control), days=settings.certificate_warning_days
        )
        self._limiting = Limiting(settings, redis, keys, identity, sealer)
        probe = Probe(redis, keys, identity, trust, full)
        self.app = app.build(
            trust,
            Registration(
                redis,
                keys,
                sealer,
                Acceptance(appender, sealer, full=full),
                outcomes_kept_ms=settings.outcomes_kept_ms,
            ),
            Outcomes(redis, keys, identity, policy, outcomes_kept_ms=settings.outcomes_kept_ms),
            Checks(probe, database, certificate_ends_ms=certificate_ends_ms),
            partitions=len(keys.partitions),
            people=[*self._people.routes(), *reads, *administration, *audit],
            limits=RateLimits(address=self._limiting.address, exempt=app.unlimited),
            metrics_public=settings.metrics_public,
            inspection=settings.inspection,
        )

    async def run(self, stop: asyncio.Event, on_bound: Callable[[int], None] | None = None) -> None:
        """Serve until `stop`. Starts without a proof of trust: health then says what it waits for."""
        try:
            beside = (self._people.failures.run(), self._expiry.run())
            async with lifecycle.running(*beside, on_failure=stop.set):
                await self._serve(stop, on_bound)
        finally:
            await self._people.aclose()
            await self._appender.aclose()
            await self._limiting.aclose()

    async def _serve(self, stop: asyncio.Event, on_bound: Callable[[int], None] | None) -> None:
        settings = self._settings
        await serve_surface(
            self.app,
            settings,
            self._context,
            host=settings.server_host,
            port=settings.server_port,
            proxied=True,
            stop=stop,
            on_bound=on_bound,
        )
