"""MariaDB's data directory as it is at first, made once a run: each would write 150 MB and wait for the disk."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from broker.embedded.mariadb import MariaDB
from broker.embedded.process import ServerProcess

S = TypeVar("S", bound=ServerProcess)
_place: Path | None = None


def keep_at(place: Path) -> None:
    """Where the first one is kept; processes of one run may share the place."""
    global _place
    _place = place


def furnish(server: MariaDB) -> MariaDB:
    """The server, with a data directory that another server of the same kind made and left."""
    if _place is None or server.data.exists():
        return server
    server.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    copied = server.directory / "data.furnished"
    shutil.copytree(_first(_place) / "data", copied, copy_function=_copy)
    copied.rename(server.data)
    return server


@contextlib.contextmanager
def kept(server: S) -> Iterator[S]:
    """The server, running until the end."""
    asyncio.run(server.start())
    try:
        yield server
    finally:
        asyncio.run(server.stop())


def _first(place: Path) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made, whole = place / "mariadb", place / "whole"
        if not whole.exists():
            # A thread, as a loop may be running in this one.
            with ThreadPoolExecutor() as thread:
                thread.submit(asyncio.run, _make(made)).result()
            shutil.copytree(made / "data", whole / "data", copy_function=_copy)
            shutil.rmtree(made)
        return whole


async def _make(directory: Path) -> None:
    server = MariaDB(directory)
    await server.start()
    await server.stop()


def _copy(source: str, target: str) -> None:
    """With holes where there are only zeros: most of InnoDB's log is not written yet."""
    with open(source, "rb") as read, open(target, "wb") as write:
        while block := read.read(1 << 16):
            if block.count(0) == len(block):
                write.seek(len(block), os.SEEK_CUR)
            else:
                write.write(block)
        write.truncate(read.tell())
    shutil.copymode(source, target)
