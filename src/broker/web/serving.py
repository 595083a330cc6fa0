"""Runs an ASGI application on a port, inside the caller's event loop, until told to stop."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from email.utils import formatdate
from typing import Any, cast

from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.server import ServerState

from broker import telemetry
from broker.errors import BrokerError
from broker.settings import Settings, networks
from broker.web.limits import DEFAULT, Limits
from broker.web.listening import Acceptor, listen
from broker.web.protocol import BrokerProtocol

STOP_POLL = 0.01
ABORT_SECONDS = 1.0

log = telemetry.get_logger(__name__)


class StartFailed(BrokerError):
    """The application refused to start."""

    code = "start_failed"


async def serve(
    app: ASGIApp,
    *,
    host: str,
    port: int,
    stop: asyncio.Event,
    ssl_context: ssl.SSLContext | None = None,
    grace: float = 20.0,
    reuse_port: bool = False,
    limits: Limits = DEFAULT,
    on_bound: Callable[[int], None] | None = None,
) -> None:
    """Serve until `stop` is set, then answer what is in progress for at most `grace` seconds.

    `on_bound` is told the port once connections are accepted. Signals stay the caller's. Raises
    listening.CannotListen, StartFailed.
    """
    await _Server(app, ssl_context, limits).run(host, port, stop, grace, on_bound, reuse_port=reuse_port)


async def serve_surface(
    app: ASGIApp,
    settings: Settings,
    context: ssl.SSLContext | None,
    *,
    host: str,
    port: int,
    stop: asyncio.Event,
    reuse_port: bool = False,
    in_flight: int = DEFAULT.in_flight,
    proxied: bool = False,
    on_bound: Callable[[int], None] | None = None,
) -> None:
    """As `serve`, over TLS where there is a context, with the time-outs that the settings give them all.

    `proxied`: reverse proxies may stand before it. What those that are trusted say of where a request comes
    from counts; nobody else's word does.
    """
    if proxied and (trusted := networks(settings.trusted_proxies)):
        # Their own types for ASGI are stricter than Starlette's.
        app = cast("ASGIApp", ProxyHeadersMiddleware(cast("Any", app), trusted))
    await serve(
        app,
        host=host,
        port=port,
        stop=stop,
        ssl_context=context,
        grace=settings.grace_period,
        reuse_port=reuse_port,
        limits=Limits(
            header_timeout=settings.header_timeout,
            body_timeout=settings.body_timeout,
            idle_timeout=settings.idle_timeout,
            in_flight=in_flight,
        ),
        on_bound=on_bound,
    )


class _Server:
    """uvicorn's configuration, state and lifespan around an acceptor and timers of our own."""

    def __init__(self, app: ASGIApp, context: ssl.SSLContext | None, limits: Limits) -> None:
        self.config = Config(
            app,
            http=BrokerProtocol,
            ws="none",
            interface="asgi3",
            lifespan="auto",
            log_config=None,
            access_log=False,
            # Who calls is what TLS says, not what a header claims; `serve_surface` knows proxies to believe.
            proxy_headers=False,
        )
        self.config.load()
        self.context = context
        self.limits = limits
        self.state = ServerState()
        self.lifespan = self.config.lifespan_class(self.config)

    async def run(
        self,
        host: str,
        port: int,
        stop: asyncio.Event,
        grace: float,
        on_bound: Callable[[int], None] | None,
        *,
        reuse_port: bool,
    ) -> None:
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise StartFailed
        try:
            sockets = listen(host, port, reuse_port=reuse_port)
            acceptor = Acceptor(
                sockets,
                self._protocol,
                context=self.context,
                limits=self.limits,
                connected=lambda: len(self.state.connections),
            )
            ticking = asyncio.create_task(self._tick())
            accepting = asyncio.create_task(acceptor.run())
            try:
                if on_bound is not None:
                    on_bound(sockets[0].getsockname()[1])
                await _until(stop, accepting, ticking)
            finally:
                accepting.cancel()
                await asyncio.wait({accepting})
                await acceptor.close()
                await self._drain(grace)
                ticking.cancel()
                await asyncio.gather(accepting, ticking, return_exceptions=True)
        finally:
            await self.lifespan.shutdown()

    def _protocol(self) -> BrokerProtocol:
        return BrokerProtocol(self.config, self.state, self.lifespan.state, limits=self.limits)

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self.state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
            now = loop.time()
            for connection in list(self.state.connections):
                connection.check(now)  # type: ignore[union-attr] # all are BrokerProtocols
            await asyncio.sleep(self.limits.tick)

    async def _drain(self, grace: float) -> None:
        """Let requests finish, then cancel what is left and cut the connections."""
        for connection in list(self.state.connections):
            connection.shutdown()
        if await self._empty(grace):
            return
        log.warning("grace_period_over", requests=len(self.state.tasks))
        for task in list(self.state.tasks):
            task.cancel()
        await self._empty(ABORT_SECONDS)
        for connection in list(self.state.connections):
            connection.raw.abort()  # type: ignore[union-attr]
        await self._empty(ABORT_SECONDS)

    async def _empty(self, seconds: float) -> bool:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while self.state.connections or self.state.tasks:
            if loop.time() >= end:
                return False
            await asyncio.sleep(STOP_POLL)
        return True


async def _until(stop: asyncio.Event, accepting: asyncio.Task[None], ticking: asyncio.Task[None]) -> None:
    """Wait for `stop`; a failure of the accepting or the ticking task is raised."""
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({stopped, accepting, ticking}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
    for task in (accepting, ticking):
        if task.done():
            task.result()
