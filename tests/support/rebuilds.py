"""Rebuilds under test, some in a process of their own, to be killed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

from broker.events import connection
from broker.events.archive.archiver import Archiver
from broker.events.archive.storage import LocalStorage
from broker.events.archive.store import StreamArchive
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.projections.rebuild.run import Rebuild, named
from broker.projections.rebuild.sources import LogSource
from broker.projections.store import Store
from support import archives

PARTITIONS = 2


def source(redis: Any, keys: LogKeys, identity: LogIdentity, where: Path) -> LogSource:
    """The history of a log whose archive is in a directory."""
    return LogSource(redis, keys, identity, LocalStorage(where))


def rebuild(store: Store, of: LogSource, name: str, **options: Any) -> Rebuild:
    """A rebuild of the projection `name`."""
    projection = named(name)
    assert projection is not None
    return Rebuild(store, of, projection, **options)


def archivers(redis: Any, keys: LogKeys, identity: LogIdentity, where: Path) -> list[Archiver]:
    """One for each stream."""
    found = [archives.archiver(redis, stream, where) for stream in keys.streams]
    for each in found:
        each.archive = StreamArchive(LocalStorage(where), identity.log_id, each.feed.stream)
    return found


def spawn(redis_url: str, mysql_url: str, log_name: str, where: Path, name: str, batch: int = 2):  # noqa: PLR0917
    """Rebuild the projection `name` in another process, in many small steps."""
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "support.rebuilds",
            redis_url,
            mysql_url,
            log_name,
            str(where),
            name,
            f"{batch}",
        ],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.DEVNULL,
    )


async def main(*arguments: str) -> None:
    """Rebuild to the end."""
    redis_url, mysql_url, log_name, where, name, batch = arguments
    keys = LogKeys(log_name, PARTITIONS)
    incarnations = {stream.stream: f"inc-{stream.stream}" for stream in keys.streams}
    identity = LogIdentity(log_id=log_name, partitions=PARTITIONS, incarnations=incarnations)
    redis, store = connection.connect(redis_url), Store(mysql_url)
    await rebuild(store, source(redis, keys, identity, Path(where)), name, batch=int(batch)).run()
    await store.close()
    await redis.aclose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
