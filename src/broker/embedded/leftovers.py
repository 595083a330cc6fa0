"""End what a killed `up` left running, before its ports and directories are taken again."""

from __future__ import annotations

import asyncio

from broker.clock import monotonic
from broker.embedded.process import ServerProcess
from broker.embedded.state import alive, read
from broker.embedded.urls import mariadb, valkey
from broker.settings import Settings

GRACE = 5.0


async def reap(settings: Settings) -> list[str]:
    """What was ended, as `gateway (PID 12)`. The caller holds the run lock, so that nobody owns them."""
    gone = []
    state = read(settings.data_dir)
    for member in state.members if state else []:
        # The embedded servers keep their own record, which also holds without a supervisor.
        if member.role in ("valkey", "mariadb") or member.pid is None or member.created is None:
            continue
        if await _end(member.pid, member.created):
            gone.append(f"{member.name} (PID {member.pid})")
    servers: list[ServerProcess] = []
    if settings.redis_url is None:
        servers.append(valkey(settings))
    if settings.mysql_url is None:
        servers.append(mariadb(settings))
    for server in servers:
        pid = await server.reap()
        gone += [f"{server.name} (PID {pid})"] if pid is not None else []
    return gone


async def _end(pid: int, since: float) -> bool:
    import psutil

    if not alive(pid, since):
        return False
    process = psutil.Process(pid)
    process.terminate()
    deadline = monotonic() + GRACE
    while alive(pid, since):
        if monotonic() > deadline:
            process.kill()
        await asyncio.sleep(0.02)
    return True
