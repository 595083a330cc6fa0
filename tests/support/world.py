"""A log, its registry and the processes' parts, all real: Valkey, PKI, keyring, followed trust."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from broker import clock
from broker.events import connection
from broker.events.appender import Appender
from broker.events.certificate_commands import CertificateCommands
from broker.events.client_commands import ClientCommands
from broker.events.connection import Redis
from broker.events.control import Registry
from broker.events.keyring import Keyring
from broker.events.sealing import Sealer
from broker.events.trust import Trust
from broker.services.ca.signer import Signer
from broker.services.gateway.role import GatewayRole
from broker.services.server.role import Given, ServerRole
from broker.settings import Settings
from support import log
from support.pki import Pki
from support.waiting import wait_until

SYSTEM = "system"


class World:
    """One log with a client `demo`, and service certificates; `settings` for the roles."""

    def __init__(self, url: str, redis: Redis, pki: Pki, directory: Path, log_name: str) -> None:
        self.url = url
        self.redis = redis
        self.pki = pki
        self.directory = directory
        self.log_name = log_name
        self.settings = Settings(
            data_dir=directory,
            certs_dir=directory / "certs",
            log_name=log_name,
            gateway_port=0,
            server_port=0,
            grace_period=5.0,
        )
        self.contexts: dict[str, object] = {}
        self.service_ends_ms = clock.now_ms() + 300 * 86_400_000

    async def create(self) -> World:
        self.keys, self.identity = await log.create(self.redis, self.log_name)
        self.keyring = Keyring.create(self.directory / "keys" / "keyring")
        incarnation = self.identity.incarnations["control"]
        self.registry = Registry(self.redis, self.keys.control, incarnation)
        self.clients = ClientCommands(self.registry, self.keyring)
        self.certificates = CertificateCommands(self.registry)
        await self.producer("demo")
        for role in ("gateway", "server", "worker", "internal"):
            await self.certificate(role, role)
        return self

    async def producer(self, name: str, domain: str | None = None):
        """A registered client with a certificate; the TLS context that presents it is in `contexts`."""
        await self.clients.register_client(name, domain, actor=SYSTEM)
        return await self.certificate(name, "producer")

    async def certificate(self, name: str, role: str):
        """A certificate, registered; `contexts[name]` presents it."""
        issued = self.pki.authority.issue(name, role)
        await self.certificates.record_certificate(
            issued.entry(name, role, issued_at_ms=clock.now_ms()), actor=SYSTEM
        )
        self.contexts[name] = self.pki.client_context(*self.pki.write(f"{self.log_name}-{name}", issued))
        return issued

    @contextlib.asynccontextmanager
    async def parts(self, url: str | None = None, trust_url: str | None = None) -> AsyncIterator[dict]:
        """What a role is made of, running; `url` in place of Valkey's own, `trust_url` for the follower's part."""
        stop = asyncio.Event()
        redis = connection.connect(url or self.url)
        # A connection of its own, so that a slow request cannot hold up the proof.
        own = connection.connect(trust_url or url or self.url)
        # Only tests that cut it off want to see it grow stale; a busy machine must not do that to the others.
        max_age = 1.0 if trust_url or url else 20.0
        incarnation = self.identity.incarnations["control"]
        trust = Trust(own, self.keys.control, incarnation, self.keyring, max_age=max_age)
        following = asyncio.create_task(trust.run(stop))
        await wait_until(trust.fresh)
        try:
            yield {
                "redis": redis,
                "keys": self.keys,
                "identity": self.identity,
                "sealer": Sealer(self.keyring, trust.keys),
                "trust": trust,
                "appender": Appender(redis, self.keys, self.identity, retry_for=0.5),
            }
        finally:
            stop.set()
            await following
            await own.aclose()
            await redis.aclose()

    @contextlib.asynccontextmanager
    async def gateway(
        self,
        *,
        url: str | None = None,
        trust_url: str | None = None,
        read_model=None,
        settings=None,
        **options,
    ):
        """A running gateway."""
        async with self.parts(url, trust_url) as parts:
            cert, key = self.pki.server
            role = GatewayRole(
                settings or self.settings, **parts, read_model=read_model, cert=cert, key=key,
                ca=self.pki.ca, certificate_ends_ms=self.service_ends_ms, **options,
            )  # fmt: skip
            async with _running(role) as running:
                running.trust, running.role, running.appender = parts["trust"], role, parts["appender"]
                yield running

    @contextlib.asynccontextmanager
    async def server(self, *, url: str | None = None, database=None, settings=None, authority=None):
        """A running server."""
        async with self.parts(url) as parts:
            cert, key = self.pki.server
            given = Given(
                settings=settings or self.settings, **parts, database=database, keyring=self.keyring,
                authority=authority or Signer(self.pki.directory, self.pki.directory / "ca.key"),
                cert=cert, key=key, ca=self.pki.ca, certificate_ends_ms=self.service_ends_ms,
            )  # fmt: skip
            role = ServerRole(given)
            async with _running(role) as running:
                running.trust, running.role = parts["trust"], role
                yield running


class Process:
    """A role that serves."""

    def __init__(self, port: int, stop: asyncio.Event, task: asyncio.Task[None]) -> None:
        self.port = port
        self.stop = stop
        self.task = task


@contextlib.asynccontextmanager
async def _running(role):
    stop, bound = asyncio.Event(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(role.run(stop, bound.set_result))
    await asyncio.wait({task, bound}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    try:
        yield Process(bound.result(), stop, task)
    finally:
        stop.set()
        await task
