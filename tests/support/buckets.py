"""Buckets under test: in memory, with a client that fails as those of real ones do."""

from __future__ import annotations

import errno
import secrets
from typing import Any, Literal

from broker.events.archive.storage import BucketStorage

Mode = Literal["allow", "refuse", "unheard"]


class Unsteady:
    """An fsspec file system. `mode` decides what becomes of writes.

    `refuse`: nothing is written. `unheard`: it is written, the reply is lost and the client's own next try is
    refused, with the error that s3fs makes of an answer 412 unless it knows better.
    """

    def __init__(self, of: Any) -> None:
        self._of = of
        self.mode: Mode = "allow"
        self.refused = 0

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        if self.mode == "refuse":
            self.refused += 1
            raise PermissionError("Access Denied")
        self._of.pipe_file(path, value, **options)
        if self.mode == "unheard":
            self.refused += 1
            raise OSError(errno.EINVAL, "At least one of the pre-conditions you specified did not hold")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)


def unsteady() -> tuple[BucketStorage, Unsteady]:
    """An empty bucket in memory, and what decides about writes to it."""
    storage = BucketStorage(f"memory://bucket-{secrets.token_hex(4)}/archive")
    storage._fs = Unsteady(storage._fs)
    return storage, storage._fs
