"""One server process out of ready-made parts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
from starlette.routing import BaseRoute

from broker import lifecycle
from broker.domain.authority import Authority
from broker.events import retry_policy
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


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """What a server is made of: the log and its keys, the read models, the authority, its certificate.

    `trust` must be running. `cert`, `key` and `ca` are PEM files, `certificate_ends_ms` is when `cert`
    expires. `full` says why the log takes nothing more, None while it does.
    """

    settings: Settings
    redis: Redis
    keys: LogKeys
    identity: LogIdentity
    keyring: Keyring
    sealer: Sealer
    trust: Trust
    appender: Appender
    database: ReadModels | None
    authority: Authority
    cert: Path
    key: Path
    ca: Path
    certificate_ends_ms: int
    full: Full = lambda: None


class ServerRole:
    """Serves the server's API until told to stop; requests in progress are finished."""

    def __init__(self, given: Given) -> None:
        settings, redis, keys, identity = given.settings, given.redis, given.keys, given.identity
        self._settings = settings
        self._appender = given.appender
        self._context = tls.server_context(given.cert, given.key, given.ca)
        self._people = People(
            settings,
            redis=redis,
            keys=keys,
            identity=identity,
            keyring=given.keyring,
            models=given.database,
        )
        notices = Notices(redis, keys.control)
        self._expiry = ExpiryWatch(
            given.trust, given.authority, notices, days=settings.certificate_warning_days
        )
        self._limiting = Limiting(settings, redis, keys, identity, given.sealer)
        self.app = app.build(
            given.trust,
            _registration(given),
            _outcomes(given),
            _checks(given),
            partitions=len(keys.partitions),
            people=_for_people(given, self._people),
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


def _registration(given: Given) -> Registration:
    acceptance = Acceptance(given.appender, given.sealer, full=given.full)
    kept = given.settings.outcomes_kept_ms
    return Registration(given.redis, given.keys, given.sealer, acceptance, outcomes_kept_ms=kept)


def _outcomes(given: Given) -> Outcomes:
    policy, kept = retry_policy.of(given.settings), given.settings.outcomes_kept_ms
    return Outcomes(given.redis, given.keys, given.identity, policy, outcomes_kept_ms=kept)


def _checks(given: Given) -> Checks:
    probe = Probe(given.redis, given.keys, given.identity, given.trust, given.full)
    return Checks(probe, given.database, certificate_ends_ms=given.certificate_ends_ms)


def _for_people(given: Given, people: People) -> list[BaseRoute]:
    """Every route that takes access tokens: signing in, reading, administration, audit."""
    reads = reading_routes(
        people.admitted,
        given.database if isinstance(given.database, Queries) else None,
        people.access,
        redis=given.redis,
        keys=given.keys,
        identity=given.identity,
        sealer=given.sealer,
        trust=given.trust,
    )
    audit = audit_routes(
        people.admitted,
        given.settings,
        redis=given.redis,
        keys=given.keys,
        identity=given.identity,
        keyring=given.keyring,
    )
    return [*people.routes(), *reads, *admin_routes(_administration(given, people)), *audit]


def _administration(given: Given, people: People) -> Parts:
    return Parts(
        settings=given.settings,
        admins=people.admitted.only("admin"),
        redis=given.redis,
        keys=given.keys,
        identity=given.identity,
        keyring=given.keyring,
        sealer=given.sealer,
        trust=given.trust,
        registry=people.registry,
        access=people.access,
        authority=given.authority,
        database=given.database,
    )
