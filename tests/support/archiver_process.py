"""An archiver that trims, in a process of its own, to be killed: `python -m support.archiver_process REDIS LOG DIR`."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from broker.events import connection
from broker.events.archive.archiver import Limits
from broker.events.archive.trimming import Trimmer
from broker.events.keys import LogKeys
from broker.lifecycle import stop_on_signals
from support import archives

PARTITIONS = 2
QUICK = Limits(size=4_000, seconds=0.02, poll=0.01, page=30)


def spawn(redis_url: str, log_name: str, directory: Path) -> subprocess.Popen[bytes]:
    """Start one."""
    return subprocess.Popen(
        [sys.executable, "-m", "support.archiver_process", redis_url, log_name, str(directory)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.DEVNULL,
    )


async def main(redis_url: str, log_name: str, directory: str) -> None:
    """Run until a signal."""
    stop = asyncio.Event()
    stop_on_signals(stop)
    redis = connection.connect(redis_url)
    keys = LogKeys(log_name, PARTITIONS)
    owner = f"{asyncio.get_running_loop().time()}"
    archivers = [
        archives.archiver(redis, stream, Path(directory), owner=owner, ttl=0.3, limits=QUICK)
        for stream in keys.partitions
    ]

    async def needs():
        return {}

    async with archives.running(*archivers):
        await Trimmer(archivers, needs, lambda: 0, interval=0.02).run(stop)
    await redis.aclose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
