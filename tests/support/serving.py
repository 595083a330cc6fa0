"""Real listeners on free loopback ports, and raw connections to them."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

import msgspec

from broker.web.limits import Limits
from broker.web.serving import serve


class Running:
    """A listener under test."""

    def __init__(self, port: int, stop: asyncio.Event, task: asyncio.Task[None]) -> None:
        self.port = port
        self.stop = stop
        self.task = task


@contextlib.asynccontextmanager
async def listening(app, *, context: ssl.SSLContext | None = None, **options) -> AsyncIterator[Running]:
    """Serve `app` for the body of the `async with`; stopped gracefully afterwards."""
    stop, bound = asyncio.Event(), asyncio.get_running_loop().create_future()
    options.setdefault("limits", Limits())
    options.setdefault("grace", 5.0)
    task = asyncio.create_task(
        serve(
            app,
            host="127.0.0.1",
            port=0,
            stop=stop,
            ssl_context=context,
            on_bound=bound.set_result,
            **options,
        )
    )
    await asyncio.wait({task, bound}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    try:
        yield Running(bound.result(), stop, task)
    finally:
        stop.set()
        await task


class Raw:
    """A connection on which a test writes bytes as it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()
        # On a connection just reset `drain` returns without a turn of the loop, which would then never learn of it.
        await asyncio.sleep(0)

    async def answer(self) -> Answered:
        """The next response, by its Content-Length."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return Answered(int(first.split()[1]), headers, body)

    async def ended(self) -> bytes:
        """Whatever still comes until the server closes."""
        return await self.reader.read()


class Answered(msgspec.Struct, frozen=True):
    """One response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return msgspec.json.decode(self.body)


@contextlib.asynccontextmanager
async def connection(port: int, context: ssl.SSLContext | None = None) -> AsyncIterator[Raw]:
    """A raw connection, closed hard afterwards."""
    host = "localhost" if context else None
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=host)
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()
