"""A projector in a process of its own, to be killed: `python -m support.projector_process REDIS MYSQL LOG`."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from broker.events import connection, log_identity
from broker.events.keys import LogKeys
from broker.lifecycle import stop_on_signals
from broker.projections.store import Store
from broker.services.projector.role import Projector
from broker.settings import Settings

PARTITIONS = 2


def spawn(redis_url: str, mysql_url: str, log_name: str) -> subprocess.Popen[bytes]:
    """Start one."""
    return subprocess.Popen(
        [sys.executable, "-m", "support.projector_process", redis_url, mysql_url, log_name],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.DEVNULL,
    )


async def main(redis_url: str, mysql_url: str, log_name: str) -> None:
    """Run until a signal."""
    stop = asyncio.Event()
    stop_on_signals(stop)
    keys = LogKeys(log_name, PARTITIONS)
    identity = log_identity.LogIdentity(
        log_id=log_name,
        partitions=PARTITIONS,
        incarnations={s.stream: f"inc-{s.stream}" for s in keys.streams},
    )
    settings = Settings(projector_metrics_port=0, lease_ttl=0.5, projector_batch=50)
    redis = connection.connect(redis_url)
    await Projector(settings, redis=redis, keys=keys, identity=identity, store=Store(mysql_url)).run(stop)
    await redis.aclose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
