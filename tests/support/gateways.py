"""Gateways as processes of their own, on a log with everything set up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path

from broker import preparation
from broker import settings as settings_module
from broker.domain import ids
from broker.embedded.valkey import Valkey, free_port
from broker.events import connection
from broker.events.keys import LogKeys
from broker.settings import Settings
from broker.web import tls
from support import log
from support.calling import Caller
from support.waiting import wait_until


async def install(valkey: Valkey, directory: Path, **changes) -> Settings:
    """Settings of a log with everything set up, and a MySQL that is not there."""
    made = Settings(
        data_dir=directory / "var",
        certs_dir=directory / "certs",
        redis_url=valkey.url,
        mysql_url="mysql://nobody:x@127.0.0.1:1/message_system",
        log_name="process",
        partitions=2,
        gateway_port=free_port(),
        gateways=2,
        **changes,
    )
    await preparation.prepare(made)
    return made


@contextlib.asynccontextmanager
async def process(settings: Settings, role: str = "gateway"):
    """`broker gateway`, or another role; killed at the end unless it has ended."""
    environment = os.environ | settings_module.to_environ(settings)
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "broker", role, env=environment, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


def demo(settings: Settings) -> Caller:
    client = settings.certs_dir / "clients" / "demo"
    context = tls.client_context(settings.certs_dir / "ca.crt", client / "client.crt", client / "client.key")
    return Caller(settings.gateway_port, context)


async def ready(caller: Caller) -> None:
    async def healthy() -> bool:
        try:
            return (await caller.get("/api/v1/health")).status == 200
        except (OSError, asyncio.IncompleteReadError):
            return False

    await wait_until(healthy)


async def in_log(settings: Settings) -> list[str]:
    """The ids of all messages in the log."""
    client = connection.connect(settings.redis_url)
    found = [
        ids.text(fields[b"s"])
        for stream in LogKeys(settings.log_name, settings.partitions).partitions
        for _, fields in await log.history(client, stream)
    ]
    await client.aclose()
    return found
