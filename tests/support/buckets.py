"""Buckets under test: in memory, with a client that fails as those of real ones do; and behind real HTTP."""

from __future__ import annotations

import errno
import json
import logging
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import fsspec

from broker.events.archive.storage import BucketStorage

Mode = Literal["allow", "refuse", "unheard", "away"]


class Unsteady:
    """An fsspec file system. `mode` decides what becomes of writes, and of everything else.

    `away`: nothing is answered. `refuse`: nothing is written. `unheard`: it is written, the reply is lost and each try after that is refused,
    with the error that s3fs makes of an answer 412 unless it knows better.
    """

    def __init__(self, of: Any) -> None:
        self._of = of
        self.mode: Mode = "allow"
        self.refused = 0

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        if self.mode in {"refuse", "away"}:
            self._refuse()
        if self.mode == "allow":
            self._of.pipe_file(path, value, **options)
        else:
            self.refused += 1
            with suppress(FileExistsError):
                self._of.pipe_file(path, value, **options)
            raise OSError(errno.EINVAL, "At least one of the pre-conditions you specified did not hold")

    def _refuse(self, *_: Any, **__: Any) -> None:
        self.refused += 1
        raise PermissionError("Access Denied")

    def __getattr__(self, name: str) -> Any:
        return self._refuse if self.mode == "away" else getattr(self._of, name)


def unsteady() -> tuple[BucketStorage, Unsteady]:
    """An empty bucket in memory, and what decides about writes to it."""
    storage = BucketStorage(f"memory://bucket-{secrets.token_hex(4)}/archive")
    storage._fs = Unsteady(storage._fs)
    return storage, storage._fs


class Bucket:
    """A bucket behind real HTTP, whose policy can refuse writes."""

    def __init__(self) -> None:
        self.name = f"bucket-{secrets.token_hex(4)}"
        self.url = f"s3://{self.name}/archive"
        self._fs = fsspec.filesystem("s3")
        self._fs.mkdir(self.name)

    def refuse_writes(self) -> None:
        """Everybody's, until they are allowed again."""
        objects = {"Principal": "*", "Action": "s3:PutObject", "Resource": f"arn:aws:s3:::{self.name}/*"}
        policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Deny", **objects}]}
        self._fs.call_s3("put_bucket_policy", Bucket=self.name, Policy=json.dumps(policy))

    def allow_writes(self) -> None:
        """As in the beginning."""
        self._fs.call_s3("delete_bucket_policy", Bucket=self.name)


@contextmanager
def serving() -> Iterator[int]:
    """A server of S3's protocol in a process of its own; its port."""
    command = [sys.executable, "-m", "support.buckets"]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def addressed(port: int) -> dict[str, str]:
    """What fsspec's configuration says of S3, for the server at a port."""
    return {"endpoint_url": f"http://127.0.0.1:{port}", "key": "key", "secret": "secret"}


def main() -> None:
    """Serve on a free port, and say which."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
