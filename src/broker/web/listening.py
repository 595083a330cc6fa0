"""Listening sockets, and accepting from them with the TLS handshake in sight."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any

from broker import telemetry
from broker.errors import BrokerError
from broker.web import metrics
from broker.web.limits import Limits
from broker.web.throttle import Throttle

BACKLOG = 2048
ACCEPT_PAUSE = 0.1
# Out of descriptors or memory: it passes when connections end.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

log = telemetry.get_logger(__name__)
_failures = Throttle()
_pauses = Throttle(1)


class CannotListen(BrokerError):
    """The address cannot be listened on."""

    code = "cannot_listen"


class Listener(socket.socket):
    """Remembers what was accepted: a cancelled `sock_accept` may have taken a connection that nobody got."""

    fresh: socket.socket | None = None

    def accept(self) -> tuple[socket.socket, Any]:
        """As socket.socket.accept; what it gives stays in `fresh` until somebody takes charge of it."""
        accepted = super().accept()
        self.fresh = accepted[0]
        return accepted


def listen(host: str, port: int, *, reuse_port: bool = False) -> list[Listener]:
    """Bound and listening sockets, one for each address of `host`; port 0 takes one free port for all.

    With `reuse_port` several processes listen on one port and the kernel shares the connections out.
    Raises CannotListen.
    """
    sockets: list[Listener] = []
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, number, _, address in dict.fromkeys(found):
            sock = Listener(family, kind, number)
            sockets.append(sock)
            _prepare(sock, reuse_port=reuse_port)
            sock.bind((address[0], port, *address[2:]))
            port = port or sock.getsockname()[1]
            sock.listen(BACKLOG)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise CannotListen(f"{host}:{port}: {error.strerror or error}") from error
    return sockets


def _prepare(sock: socket.socket, *, reuse_port: bool) -> None:
    sock.setblocking(False)
    if os.name == "nt":
        # There SO_REUSEADDR would let another process take the port over.
        exclusive: int = getattr(socket, "SO_EXCLUSIVEADDRUSE")  # noqa: B009 - Windows alone has it
        sock.setsockopt(socket.SOL_SOCKET, exclusive, 1)
    else:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        if not hasattr(socket, "SO_REUSEPORT"):
            raise OSError(errno.ENOTSUP, "this system cannot share a port between processes")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)


class Acceptor:
    """Accepts connections and shakes hands. An event loop's own servers tell nobody of a failed one."""

    def __init__(
        self,
        sockets: list[Listener],
        factory: Callable[[], asyncio.Protocol],
        *,
        context: ssl.SSLContext | None,
        limits: Limits,
        connected: Callable[[], int],
    ) -> None:
        self._sockets = sockets
        self._factory = factory
        self._context = context
        self._limits = limits
        self._connected = connected
        self._handshakes: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Accept until cancelled. Raises OSError when the socket itself fails."""
        async with asyncio.TaskGroup() as group:
            for sock in self._sockets:
                group.create_task(self._accept(sock))

    async def close(self) -> None:
        """Close the sockets and give up the handshakes in progress; `run` must have ended."""
        for sock in self._sockets:
            sock.close()
            if sock.fresh is not None:
                sock.fresh.close()
        pending = list(self._handshakes)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    async def _accept(self, sock: Listener) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._connected() + len(self._handshakes) >= self._limits.connections:
                await self._pause("connections")
                continue
            try:
                connection, address = await loop.sock_accept(sock)
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    await self._pause(errno.errorcode[error.errno])
                    continue
                if isinstance(error, ConnectionError):  # gone before it was accepted
                    continue
                raise
            task = loop.create_task(self._admit(connection, address))
            self._handshakes.add(task)
            task.add_done_callback(partial(self._admitted, connection))
            sock.fresh = None

    def _admitted(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        self._handshakes.discard(task)
        if task.cancelled():  # perhaps before its first step
            connection.close()

    async def _pause(self, reason: str) -> None:
        if _pauses.admit() is not None:
            log.warning("accepting_paused", reason=reason)
        await asyncio.sleep(ACCEPT_PAUSE)

    async def _admit(self, connection: socket.socket, address: tuple[str, int]) -> None:
        loop = asyncio.get_running_loop()
        timeouts = {}
        if self._context is not None:
            timeouts["ssl_handshake_timeout"] = self._limits.handshake_timeout
            timeouts["ssl_shutdown_timeout"] = self._limits.linger_timeout
        try:
            await loop.connect_accepted_socket(self._factory, connection, ssl=self._context, **timeouts)
        except OSError as error:  # ssl.SSLError and TimeoutError are among them
            connection.close()
            _report(error, address)


def _report(error: OSError, address: tuple[str, int]) -> None:
    kind, reason = _classify(error)
    metrics.handshake_failed(kind)
    held = _failures.admit()
    if held is not None:
        log.warning("tls_handshake_failed", peer=address[:2], kind=kind, reason=reason, held_back=held)


def _classify(error: OSError) -> tuple[str, str]:
    """A kind out of a closed set, and OpenSSL's own words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return "untrusted", error.verify_message
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ConnectionResetError | BrokenPipeError):
        return "closed", "the peer closed the connection"
    if isinstance(error, ssl.SSLError):
        return "protocol", error.reason or "unknown"
    if isinstance(error, TimeoutError | ConnectionAbortedError):
        return "timeout", "the handshake took too long"
    return "closed", error.strerror or type(error).__name__
