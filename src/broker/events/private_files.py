"""Small files that must be whole and private: written beside, flushed, then renamed over."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PRIVATE_FILE = 0o600
PRIVATE_DIRECTORY = 0o700


def write(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, mode 0600, in a directory made 0700 if missing.

    Durable on return: a crash leaves the old file or the new one, whole. Raises OSError.
    """
    make_directory(path.parent)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _flush_directory(path.parent)


def make_directory(path: Path) -> None:
    """Make `path`, mode 0700, with the directories above it that are missing. Durable. Raises OSError."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(mode=PRIVATE_DIRECTORY if each == path else 0o777, exist_ok=True)
        _flush_directory(each.parent)


def _flush_directory(directory: Path) -> None:
    if sys.platform == "win32":
        return
    # The rename itself is durable only once its directory is.
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file beside `path`, so that two processes that change it take turns. Raises OSError."""
    path.parent.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
    try:
        _lock(descriptor)
        yield
    finally:
        # Closing gives the lock back; the file stays, because removing it would let two in.
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)
