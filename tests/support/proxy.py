"""A TCP proxy that injects the faults of a real network: lost replies, silence, cut connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal

Mode = Literal["pass", "drop-reply", "silent", "cut"]


class Proxy:
    """Forwards to an upstream. `mode` decides what happens to what comes back.

    `pass`: everything goes through. `drop-reply`: the request goes through, the connection is closed instead of
    the reply, once per `drops`. `silent`: nothing goes through in either direction, connections stay open.
    `cut`: connections are closed and new ones refused by closing.
    """

    def __init__(self, connect) -> None:
        self._connect = connect
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.mode: Mode = "pass"
        self.drops = 0
        self.dropped = 0
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Close every connection now."""
        for writer in list(self._writers):
            writer.close()

    async def stop(self) -> None:
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode == "cut":
            writer.close()
            return
        try:
            upstream_reader, upstream_writer = await self._connect()
        except OSError:
            writer.close()
            return
        pair = (writer, upstream_writer)
        self._writers.update(pair)
        tasks = [
            asyncio.ensure_future(self._pump(reader, upstream_writer, pair, replies=False)),
            asyncio.ensure_future(self._pump(upstream_reader, writer, pair, replies=True)),
        ]
        self._tasks.update(tasks)
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.difference_update(tasks)
        self._writers.difference_update(pair)

    async def _pump(self, reader, writer, pair, *, replies: bool) -> None:
        try:
            while data := await reader.read(65536):
                if self.mode == "silent":
                    continue
                if replies and self.mode == "drop-reply" and self.drops > 0:
                    self.drops -= 1
                    self.dropped += 1
                    break
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            for one in pair:
                one.close()


@asynccontextmanager
async def proxy_to_unix(path: str) -> AsyncIterator[Proxy]:
    """A proxy on a free loopback port in front of a unix socket."""
    proxy = Proxy(lambda: asyncio.open_unix_connection(path))
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()


@asynccontextmanager
async def proxy_to_port(port: int) -> AsyncIterator[Proxy]:
    """A proxy on a free loopback port in front of another."""
    proxy = Proxy(lambda: asyncio.open_connection("127.0.0.1", port))
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
