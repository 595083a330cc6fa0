"""Connections to Redis, and its failures in the broker's words.

Writes never retry by themselves: a lost reply followed by a silent retry would append twice. Who retries
does so with an idempotent script.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import hiredis
import redis.asyncio as aioredis
from redis import exceptions as redis_errors
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from broker.errors import BrokerError, LeaseLost, LogFull, LogRefused, LogUnavailable

T = TypeVar("T")
Redis = aioredis.Redis

BLOCK_MS = 1000
"""How long a blocking read blocks; well below every socket time-out."""


class _Sending:
    """How commands go out, mixed into redis-py's asynchronous connections."""

    if TYPE_CHECKING:
        is_connected: bool
        socket_timeout: float
        _writer: asyncio.StreamWriter

        async def connect_check_health(self, check_health: bool) -> None: ...
        async def disconnect(self, nowait: bool = False) -> None: ...

    def pack_command(self, *args: Any) -> list[bytes]:
        """Pack in C: redis-py does it in Python, three times slower."""
        # A name of two words, such as SCRIPT LOAD, is two arguments.
        return [hiredis.pack_command((*args[0].split(), *args[1:]))]

    async def send_packed_command(self, command: Iterable[bytes] | bytes, check_health: bool = True) -> None:  # noqa: ARG002 - redis-py's signature; we ask for no health checks
        """Send without `asyncio.wait_for`, which redis-py uses.

        Before Python 3.12 that one forgets a cancellation that comes when the command is just sent, so that
        whoever is being stopped goes on for ever; and it makes a task of each command.
        """
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        try:
            self._writer.writelines([command] if isinstance(command, bytes) else command)
            async with asyncio.timeout(self.socket_timeout):
                await self._writer.drain()
        except TimeoutError:
            await self.disconnect(nowait=True)
            raise redis_errors.TimeoutError("Timeout writing to socket") from None
        except OSError as error:
            await self.disconnect(nowait=True)
            raise redis_errors.ConnectionError(f"Error while writing to socket: {error}") from error
        except BaseException:
            # Half a command may have gone out: nothing can follow it.
            await self.disconnect(nowait=True)
            raise


def connect(url: str, *, timeout: float = 5.0, pool: int = 64) -> Redis:
    """A client for `redis://`, `rediss://` or `unix://`; connects on first use. Times in seconds."""
    client: Redis = aioredis.Redis.from_url(
        url,
        socket_timeout=max(timeout, 2 * BLOCK_MS / 1000),
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
        max_connections=pool,
        health_check_interval=0,
    )
    made = client.connection_pool
    made.connection_class = type("Connection", (_Sending, made.connection_class), {})
    return client


class GroupMissing(BrokerError):
    """The consumer group does not exist; somebody destroyed it."""

    code = "group_missing"


def translate(error: BaseException) -> BrokerError:
    """The broker's error for one of redis-py's or the socket's."""
    if isinstance(error, BrokerError):
        return error
    text = str(error)
    word = text.split(" ", 1)[0]
    if isinstance(error, redis_errors.OutOfMemoryError) or word == "OOM" or "OOM command not allowed" in text:
        return LogFull("Redis is at its maxmemory.")
    if word == "LEASE":
        return LeaseLost(text[len(word) + 1 :])
    if word == "REFUSED":
        return LogRefused(text[len(word) + 1 :])
    if word == "NOGROUP" or "NOGROUP" in text:
        return GroupMissing()
    return LogUnavailable(f"{type(error).__name__}: {text}" if text else type(error).__name__)


FAILURES = (redis_errors.RedisError, OSError, asyncio.TimeoutError)


@contextmanager
def translated() -> Iterator[None]:
    """Raise the broker's errors instead of redis-py's and the socket's."""
    try:
        yield
    except FAILURES as error:
        raise translate(error) from error


async def call(awaitable: Awaitable[T]) -> T:
    """Await a redis-py call, with its failures translated."""
    with translated():
        return await awaitable


def text(value: Any) -> str:
    """A reply's bytes as text."""
    return value.decode() if isinstance(value, bytes) else str(value)
