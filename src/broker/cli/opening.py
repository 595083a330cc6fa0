"""What commands open: Redis, database, registry, gateway; and what they say when it is not there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from broker.errors import BrokerError, LogUnavailable, StoreUnavailable
from broker.settings import Settings

if TYPE_CHECKING:
    from broker.events.connection import Redis
    from broker.events.keys import LogKeys
    from broker.preparation import Tools
    from broker.projections.store import Store

ACTOR = "system"
"""Who acts when somebody administers from a shell: whoever may read the keyring."""


class NotRunning(BrokerError):
    """Nothing answers."""

    code = "not_running"

    def __str__(self) -> str:
        return self.detail


def resolved(settings: Settings) -> Settings:
    """`settings` with the addresses of the embedded servers where none are set."""
    from broker.embedded.urls import resolve

    return resolve(settings)


def for_inspection(settings: Settings) -> bool:
    """Whether this is a copy that is only looked at: by its settings, or as `up --inspect` runs on it now."""
    from broker.embedded.state import running

    state = running(settings.data_dir)
    return settings.inspection or (state is not None and state.inspection)


@asynccontextmanager
async def log(settings: Settings) -> AsyncIterator[tuple[Redis, LogKeys]]:
    """Redis and the keys of the log that it holds, for reading. Raises NotRunning, LogRefused."""
    from broker.events import connection, inspection
    from broker.events.keys import LogKeys

    settings = resolved(settings)
    redis = connection.connect(settings.redis_url or "", timeout=settings.redis_timeout)
    try:
        await answering(redis, settings)
        yield redis, LogKeys(settings.log_name, await inspection.partitions(redis, settings.log_name))
    finally:
        await redis.aclose()


@asynccontextmanager
async def administration(settings: Settings) -> AsyncIterator[Tools]:
    """The registry with its keyring. Raises NotRunning, LogRefused, KeyringError."""
    from broker.bootstrap import opened
    from broker.events import connection

    settings = resolved(settings)
    redis = connection.connect(settings.redis_url or "", timeout=settings.redis_timeout, pool=1)
    try:
        await answering(redis, settings)
    finally:
        await redis.aclose()
    async with opened(settings) as tools:
        yield tools


async def answering(redis: Redis, settings: Settings) -> None:
    """Raises NotRunning when Redis does not answer."""
    from broker.events import probe

    try:
        await probe.ping(redis)
    except LogUnavailable as error:
        raise NotRunning(_nothing("Redis", "redis_url", settings, error)) from error


@asynccontextmanager
async def store(settings: Settings, *, pool: int = 2) -> AsyncIterator[Store]:
    """The database of the read models, with so many connections at most. Raises NotRunning."""
    from broker.projections.store import Store

    settings = resolved(settings)
    opened = Store(settings.mysql_url or "", pool=pool)
    try:
        try:
            await opened.ping()
        except StoreUnavailable as error:
            raise NotRunning(_nothing("The database", "mysql_url", settings, error)) from error
        yield opened
    finally:
        await opened.close()


def gateway_url(settings: Settings) -> str:
    """Where `up` runs the gateway, else where the settings say that it listens."""
    from broker.embedded.probe import reachable
    from broker.embedded.state import running

    state = running(settings.data_dir)
    for member in state.members if state is not None else []:
        if member.role == "gateway" and member.url:
            return member.url.rstrip("/")
    host = reachable(settings.gateway_host)
    return f"https://{f'[{host}]' if ':' in host else host}:{settings.gateway_port}"


def _nothing(what: str, setting: str, settings: Settings, error: BrokerError) -> str:
    from broker.settings import shown

    return f"{what} does not answer at {shown(settings)[setting]}: is `broker up` running? ({error.detail})"
