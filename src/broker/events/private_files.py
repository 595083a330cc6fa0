"""Small files that must be whole and private: written beside, flushed, then renamed over."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from broker import directories

T = TypeVar("T")

WAITS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
"""Seconds between tries, on Windows, where somebody else has a file open."""
PRIVATE_FILE = 0o600


def write(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, mode 0600, in a directory made for its owner only if missing.

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
        replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _flush_directory(path.parent)


def replace(beside: Path, path: Path) -> None:
    """Put a file in the place of another. Raises OSError."""
    _unhindered(lambda: beside.replace(path))


def read(path: Path) -> bytes:
    """The content of a file that others may be replacing. Raises OSError."""
    return _unhindered(path.read_bytes)


def _unhindered(act: Callable[[], T]) -> T:
    """Windows refuses for a moment to replace a file that is being read, and to read one being replaced."""
    for wait in WAITS if sys.platform == "win32" else ():
        try:
            return act()
        except PermissionError:
            time.sleep(wait)
    return act()


def make_directory(path: Path, mode: int | None = None) -> None:
    """Make `path`, by default for its owner only, with the directories above it that are missing. Durable.

    Raises OSError.
    """
    mode = directories.mode() if mode is None else mode
    missing = [each for each in (path, *path.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(mode=mode if each == path else 0o777, exist_ok=True)
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
    path.parent.mkdir(mode=directories.mode(), parents=True, exist_ok=True)
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
