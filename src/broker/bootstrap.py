"""The only wiring: one factory per role, out of the settings. Tests call the roles' constructors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from broker import lifecycle, preparation, telemetry, tracing
from broker.errors import BrokerError, LogRefused, LogUnavailable, SettingsError
from broker.events import connection, durability, log_identity
from broker.events.appender import Appender, Durability
from broker.events.connection import Redis
from broker.events.durability import FULLNESS_POLL, METRICS, Fullness
from broker.events.key_holders import KeyHolder
from broker.events.keyring import Keyring
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.events.sealing import Sealer
from broker.events.trust import Trust
from broker.settings import Settings

if TYPE_CHECKING:
    from broker.events.probe import Full
    from broker.projections.queries import Queries
    from broker.services.portal.role import PortalRole

log = telemetry.get_logger(__name__)

prepare = preparation.prepare
check_redis = preparation.check_redis
check_restored = preparation.check_restored
opened = preparation.opened

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_AGAIN: Final = 75
"""As in sysexits.h: start it again. Some service managers restart only what ended with a failure."""


class Parts(msgspec.Struct, frozen=True):
    """What every role is made of."""

    settings: Settings
    redis: Redis
    keys: LogKeys
    identity: LogIdentity
    keyring: Keyring
    role: str = ""

    def trust(self) -> Trust:
        """A follower with a connection of its own: no other traffic may delay a revocation."""
        settings = self.settings
        return Trust(
            connect(settings, pool=2),
            self.keys.control,
            self.identity.incarnations[self.keys.control.stream],
            self.keyring,
            poll=settings.trust_poll,
            max_age=settings.trust_max_age,
        )

    def key_holder(self, trust: Trust) -> KeyHolder:
        """What says that this process is there, which master keys it has loaded, how far `trust` follows."""
        control = self.keys.control
        incarnation = self.identity.incarnations[control.stream]
        return KeyHolder(self.redis, control, incarnation, self.keyring, role=self.role, trust=trust)

    def appender(self, *, waitaof: bool = False) -> Appender:
        """Group commit with the settings' idempotency and durability."""
        settings = self.settings
        return Appender(
            self.redis,
            self.keys,
            self.identity,
            idempotency_ms=settings.idempotency_ms,
            durability=Durability(settings.wait_replicas, round(settings.wait_timeout * 1000), waitaof),
            retry_for=settings.redis_timeout,
        )

    def fullness(self) -> Fullness:
        """The watcher of memory, and of the disk where the server is our own."""
        own = self.settings.data_dir / "valkey"
        embedded = self.settings.redis_url or ""
        directory = own if own.exists() and embedded.startswith("unix:") else None
        return Fullness(self.redis, self.settings, directory)

    def certificate(self, role: str) -> tuple[Path, Path, Path]:
        """Certificate, key and CA of a service, as PEM files."""
        services = self.settings.certs_dir / "services"
        return services / f"{role}.crt", services / f"{role}.key", self.settings.certs_dir / "ca.crt"


Role = Callable[[Parts, asyncio.Event], Awaitable[None]]


def connect(settings: Settings, *, pool: int = 64) -> Redis:
    """A client of the settings' Redis."""
    return connection.connect(settings.redis_url or "", timeout=settings.redis_timeout, pool=pool)


def run_role(role: str, settings: Settings) -> int:
    """Run one role until a signal; the process' exit code. `settings` has its addresses resolved."""
    telemetry.configure(role, settings.log_level, settings.log_format)
    try:
        return _run(_main(role, inspected(role, settings)))
    except SettingsError as error:
        log.error("role_refused", reason=str(error))
        return EXIT_USAGE
    except BrokerError as error:
        log.error("role_failed", code=error.code, reason=str(error))
        return EXIT_FAILED


def inspected(role: str, settings: Settings) -> Settings:
    """The settings of a role; on a copy for inspection none that reaches out. Raises SettingsError there."""
    if not settings.inspection:
        return settings
    if role not in {"server", "projector", "portal"}:
        raise SettingsError(
            "This is a copy for inspection, by `up --inspect` or the setting inspection (BROKER_INSPECTION): "
            f"nothing is accepted or delivered, so no {role} runs."
        )
    return msgspec.structs.replace(settings, otlp_url=None, oidc_issuer=None)


def _run(main: Awaitable[int]) -> int:
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.run(main)  # type: ignore[arg-type]
    return uvloop.run(main)  # type: ignore[arg-type]


async def _main(role: str, settings: Settings) -> int:
    stop, repaired = asyncio.Event(), asyncio.Event()
    lifecycle.stop_on_signals(stop)
    redis = connect(settings)
    try:
        identity = await _identity(redis, settings, stop)
        if identity is None:
            return 0
        keyring = Keyring.load(settings.keyring_path, settings.key_passphrase)
        keys = LogKeys(settings.log_name, identity.partitions)
        log.info("role_started", log_id=identity.log_id)
        _traced(role, settings)
        lifecycle.calm_collector()
        follow = _succeeded(redis, settings, identity, stop, repaired)
        async with lifecycle.running(follow, on_failure=stop.set):
            await ROLES[role](Parts(settings, redis, keys, identity, keyring, role), stop)
        log.info("role_stopped")
        return EXIT_AGAIN if repaired.is_set() else 0
    finally:
        if tracing.active is not None:
            await asyncio.to_thread(tracing.stop)
        await redis.aclose()


def _traced(role: str, settings: Settings) -> None:
    """Record spans from now on, where the settings name a collector."""
    if settings.otlp_url is not None:
        from broker.web import metrics

        tracing.start(role, settings.otlp_url, settings.trace_ratio, metrics.spans)


async def _succeeded(
    redis: Redis, settings: Settings, identity: LogIdentity, stop: asyncio.Event, repaired: asyncio.Event
) -> None:
    """End the process, in order, once its log was repaired: started again, it begins with what is now."""
    if await log_identity.succeeded(redis, settings, identity, stop):
        log.warning("log_repaired", log_id=identity.log_id)
        repaired.set()
        stop.set()


async def _identity(redis: Redis, settings: Settings, stop: asyncio.Event) -> LogIdentity | None:
    """Which log this is; None when told to stop while waiting.

    A role starts without Redis where the data directory remembers the log: every script checks the
    incarnation anyway, and a gateway that answers 503 with the reason is better than none.
    """
    remembered = log_identity.read_file(settings)
    for wait in lifecycle.backoff():
        try:
            return await log_identity.load(redis, settings)
        except (LogUnavailable, LogRefused) as error:
            log.warning("log_not_ready", code=error.code, reason=str(error))
        if remembered is not None:
            return remembered
        if await lifecycle.sleep_or_stop(wait, stop):
            return None
    return None


async def durable(parts: Parts, stop: asyncio.Event) -> bool:
    """Wait for Redis and check that it is durable; False when told to stop. Raises UnsafeRedis."""
    for wait in lifecycle.backoff():
        with suppress(LogUnavailable):
            await durability.check(parts.redis, parts.settings)
            return True
        if await lifecycle.sleep_or_stop(wait, stop):
            return False
    return False


async def _exported(fullness: Fullness, stop: asyncio.Event) -> None:
    """Carry what is known of the log's room into the metrics."""
    from broker.web import metrics

    while not await lifecycle.sleep_or_stop(FULLNESS_POLL, stop):
        for name, value in fullness.metrics().items():
            metrics.gauge(name, METRICS[name], mode="livemax").set(value)


@asynccontextmanager
async def followed(parts: Parts, trust: Trust, stop: asyncio.Event) -> AsyncIterator[Fullness]:
    """Keep `trust` and the log's fullness watched beside the body, once Redis proved durable."""
    fullness = parts.fullness()

    async def follow() -> None:
        if await durable(parts, stop):
            holder = parts.key_holder(trust)
            await holder.announce()
            await asyncio.gather(
                trust.run(stop), fullness.run(stop), _exported(fullness, stop), holder.run(stop)
            )

    async with lifecycle.running(follow(), on_failure=stop.set):
        yield fullness


async def _gateway(parts: Parts, stop: asyncio.Event) -> None:
    from broker.projections.queries import Queries
    from broker.services.gateway.role import GatewayRole

    async with _serving(parts, "gateway", stop) as common:
        queries = Queries(parts.settings.mysql_url or "", pool=parts.settings.mysql_pool)
        await GatewayRole(parts.settings, read_model=queries, **common).run(stop)
        await queries.close()


async def _server(parts: Parts, stop: asyncio.Event) -> None:
    from broker.projections.queries import Queries
    from broker.services.ca.signer import Signer
    from broker.services.server.role import Given, ServerRole

    async with _serving(parts, "server", stop) as common:
        settings = parts.settings
        queries = Queries(settings.mysql_url or "", pool=settings.mysql_pool)
        signer = Signer(settings.certs_dir, settings.ca_key_path, settings.key_passphrase)
        given = Given(settings=settings, database=queries, authority=signer, keyring=parts.keyring, **common)
        await ServerRole(given).run(stop)
        await queries.close()


async def _portal(parts: Parts, stop: asyncio.Event) -> None:
    from broker.projections.queries import Queries

    settings = parts.settings
    trust = parts.trust()
    async with followed(parts, trust, stop) as fullness:
        queries = Queries(settings.mysql_url or "", pool=settings.mysql_pool)
        await portal_role(parts, trust, queries, full=lambda: fullness.reason).run(stop)
        await queries.close()


def portal_role(parts: Parts, trust: Trust, queries: Queries, *, full: Full) -> PortalRole:
    """A portal that reads `queries`; `trust` must be running."""
    from broker.services.ca.signer import Signer
    from broker.services.portal.role import PortalRole

    settings = parts.settings
    # Browsers come to the machine under the names that the server's certificate has.
    cert, key, ca = parts.certificate("server")
    return PortalRole(
        settings,
        authority=Signer(settings.certs_dir, settings.ca_key_path, settings.key_passphrase),
        redis=parts.redis,
        keys=parts.keys,
        identity=parts.identity,
        keyring=parts.keyring,
        sealer=Sealer(parts.keyring, trust.keys),
        trust=trust,
        queries=queries,
        cert=cert,
        key=key,
        ca=ca,
        full=full,
    )


@asynccontextmanager
async def _serving(parts: Parts, role: str, stop: asyncio.Event) -> AsyncIterator[dict[str, Any]]:
    """What gateway and server have in common: trust followed, messages sealed and appended, TLS."""
    from broker.services.ca.authority import read_certificate

    trust = parts.trust()
    cert, key, ca = parts.certificate(role)
    async with followed(parts, trust, stop) as fullness:
        yield {
            "redis": parts.redis,
            "keys": parts.keys,
            "identity": parts.identity,
            "sealer": Sealer(parts.keyring, trust.keys),
            "trust": trust,
            "appender": parts.appender(),
            "cert": cert,
            "key": key,
            "ca": ca,
            "certificate_ends_ms": read_certificate(cert).not_after_ms,
            "full": lambda: fullness.reason,
        }


async def _worker(parts: Parts, stop: asyncio.Event) -> None:
    from broker.services.delivery.role import WorkerRole

    trust = parts.trust()
    cert, key, ca = parts.certificate("worker")
    async with followed(parts, trust, stop):
        role = WorkerRole(
            parts.settings,
            redis=parts.redis,
            redis_url=parts.settings.redis_url or "",
            keys=parts.keys,
            identity=parts.identity,
            sealer=Sealer(parts.keyring, trust.keys),
            trust=trust,
            cert=cert,
            key=key,
            ca=ca,
        )
        await role.run(stop)


async def _projector(parts: Parts, stop: asyncio.Event) -> None:
    from broker.projections.store import Store
    from broker.services.projector.archiving import Archiving
    from broker.services.projector.backups import Backups
    from broker.services.projector.digesting import Digesting
    from broker.services.projector.role import Projector

    settings = parts.settings
    # One connection for every stream's transaction, and some for what measures and asks.
    store = Store(settings.mysql_url or "", pool=len(parts.keys.streams) + 2)
    common: dict[str, Any] = {
        "redis": parts.redis,
        "keys": parts.keys,
        "identity": parts.identity,
        "store": store,
    }
    fullness = parts.fullness()
    # Halfway to the mark at which nothing more is accepted, room is worth more than history at hand.
    archiving = partial(
        Archiving,
        settings,
        pressed=lambda: fullness.sample.ratio > settings.log_full_ratio / 2,
        **common,
    )
    if settings.inspection:
        # A copy adds nothing to an archive, cuts nothing and signs nothing.
        async with lifecycle.running(Backups(settings).run(stop), on_failure=stop.set):
            await Projector(settings, **common).run(stop)
        return
    role = Projector(settings, archiving=archiving, **common)
    digesting = Digesting(
        settings, redis=parts.redis, keys=parts.keys, identity=parts.identity, keyring=parts.keyring
    )
    others = (fullness.run(stop), digesting.run(stop), Backups(settings).run(stop))
    async with lifecycle.running(*others, on_failure=stop.set):
        await role.run(stop)


ROLES: Final[dict[str, Role]] = {
    "gateway": _gateway,
    "server": _server,
    "portal": _portal,
    "worker": _worker,
    "projector": _projector,
}
