"""HTTP/1.1 as our listeners speak it: uvicorn's httptools protocol with the peer, bounds and timers.

One sweep over all connections (`check`) replaces a timer per request: a request only notes phase and time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from enum import IntEnum
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from broker.web import peer, refusal
from broker.web.limits import DEFAULT, Limits
from broker.web.refusal import Refusal

# Where trailers go: they would join the headers of a request that has been judged by them, without end.
_nowhere: Any = deque(maxlen=0)


class Phase(IntEnum):
    """Where the bytes that arrive next belong."""

    WAIT = 0  # no request begun: a new or an idle connection
    HEAD = 1  # inside a request line or headers
    BODY = 2  # inside the body of a request that is being served
    RUN = 3  # request complete, response not
    DRAIN = 4  # response complete, request body not
    LAST = 5  # nowhere: what arrives is thrown away, responses that are due are still given
    CLOSING = 6  # nowhere, and nothing more is given


class BrokerProtocol(HttpToolsProtocol):
    """One connection. `scope["state"]["peer"]` is a `peer.Peer`, or None without a client certificate."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Limits = DEFAULT,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.access_log = False
        self.limits = limits
        self.phase = Phase.WAIT
        self.since = self.now = self.loop.time()
        self.allowed = limits.header_timeout
        self.running: RequestResponseCycle | None = None
        self.refused: Refusal | None = None
        self.stopping = self.ended = False
        self.chunk = self.begun = self.drained = 0
        # Bytes of an unfinished head, or since the last byte of a body: chunk extensions, trailers.
        self.fed = 0
        self.deadline = self.since
        self.expected_keep_alive = False
        self.unsent: int | None = None

    # The transport's callbacks

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.raw = transport
        self.transport = Gentle(self, transport)  # type: ignore[assignment] # what upstream calls of it
        self.app_state = {**self.app_state, "peer": peer.of_transport(transport)}

    def connection_lost(self, exc: Exception | None) -> None:
        # Upstream tells the newest request only; with pipelining the one being served is another.
        for cycle in (self.running, *(queued for queued, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self.pipeline.clear()
        self.phase, self.ended = Phase.CLOSING, True
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self.now = self.loop.time()
        before = self.phase
        if before >= Phase.LAST:
            self._throw_away(len(data))
            return
        self.chunk = len(data)
        self.fed = self.chunk + (0 if before is Phase.WAIT else self.fed)
        self.begun = 0
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # We speak nothing but HTTP/1.1: the request is served as such, what follows it is not read.
            self._last_cycle_closes()
            self.phase = Phase.LAST
        except httptools.HttpParserError:
            self._refuse(self.refused or Refusal("bad_request", "This is not valid HTTP/1.1."))
        else:
            self._bound_head_and_trailers(before)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.unsent, self.stalled_since = -1, self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.unsent = None

    # The parser's callbacks

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.begun += 1
        self.phase, self.since, self.allowed = Phase.HEAD, self.now, self.limits.header_timeout

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > self.limits.url_bytes:
            detail = f"The URL may have at most {self.limits.url_bytes} bytes."
            self._stop_parser(Refusal("uri_too_long", detail))

    def on_headers_complete(self) -> None:
        # A head that arrived in less than the bound cannot exceed it; only others are added up.
        limits = self.limits
        bound = limits.header_bytes
        if max(self.chunk, self.fed) > bound and refusal.head_size(self.url, self.headers) > bound:
            self._stop_parser(refusal.headers_too_large(limits))
        if (wrong := refusal.of_head(self.headers, self.parser.get_http_version())) is not None:
            self._stop_parser(wrong)
        if len(self.pipeline) >= limits.pipelined:
            self._stop_parser(Refusal("overloaded", "Too many requests at once on one connection."))
        super().on_headers_complete()
        self.headers, self.fed = _nowhere, 0
        self.phase, self.since, self.allowed = Phase.BODY, self.now, limits.body_timeout
        self.deadline = self.now + limits.body_total
        if self.expect_100_continue:
            # Refused before its body, it may or may not send it: the connection cannot be used again.
            self.expected_keep_alive, self.cycle.keep_alive = self.cycle.keep_alive, False

    def on_body(self, body: bytes) -> None:
        self.fed = 0
        if self.phase is Phase.DRAIN:
            self._throw_away(len(body))
            return
        self.since = self.now
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self.phase is Phase.BODY:
            self.phase = Phase.RUN
            if self.expect_100_continue and not self.stopping and not self.cycle.response_started:
                self.cycle.keep_alive = self.expected_keep_alive
        elif self.phase is Phase.DRAIN:
            self._wait()

    # The server's and the responses' calls

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.now = self.loop.time()
        if self.pipeline:
            self.since = self.now
            self._start_asgi_task(*self.pipeline.pop())
        if not self.pipeline:
            # Upstream reads on while requests wait, and so takes in more than it ever answers.
            self.flow.resume_reading()
        if self._busy():
            return
        if self.phase is Phase.RUN:
            self._wait()
        elif self.phase is Phase.BODY:
            self.phase, self.since, self.allowed = Phase.DRAIN, self.now, self.limits.body_timeout
            self.drained = 0

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.running = cycle
        if len(self.tasks) >= self.limits.in_flight:
            app = refusal.overloaded
        super()._start_asgi_task(cycle, app)

    def shutdown(self) -> None:
        """Close after the response in progress, or now."""
        self.stopping = True
        if self._busy():
            self._last_cycle_closes()
        else:
            self.transport.close()

    def check(self, now: float) -> None:
        """Called by the server every tick: cut what makes no progress."""
        if self.unsent is not None:
            self._check_writing(now)
        if self.phase is Phase.BODY and self.flow.read_paused:
            # It is we who do not read.
            self.since, self.deadline = now, max(self.deadline, now + self.limits.body_timeout)
        late = now - self.since > self.allowed or (self.phase is Phase.BODY and now > self.deadline)
        if not late or self.phase in {Phase.RUN, Phase.LAST}:
            return
        self.now = now
        if self.phase is Phase.HEAD:
            self._refuse(Refusal("request_timeout", "The headers did not arrive in time."))
        elif self.phase is Phase.BODY:
            self._refuse(Refusal("request_timeout", "The body did not arrive in time."))
        elif self.ended:
            self.raw.abort()
        else:
            self._end()

    def close_gently(self) -> None:
        """Close once the client could read the response: at once, or when it stops sending.

        Closing with input unread resets the connection, and the client would lose the answer.
        """
        if self.phase in {Phase.BODY, Phase.DRAIN, Phase.LAST}:
            self.phase, self.since, self.allowed = Phase.CLOSING, self.loop.time(), self.limits.linger_timeout
            self.drained = 0
            self.flow.resume_reading()
        elif self.phase is not Phase.CLOSING:
            self._end()

    # Inside

    def _wait(self) -> None:
        self.phase, self.since, self.allowed = Phase.WAIT, self.now, self.limits.idle_timeout

    def _end(self) -> None:
        self.phase, self.since, self.allowed = Phase.CLOSING, self.loop.time(), self.limits.linger_timeout
        self.ended = True
        self.raw.close()

    def _throw_away(self, size: int) -> None:
        self.drained += size
        if self.drained > self.limits.linger_bytes:
            self.raw.abort()

    def _busy(self) -> bool:
        return self.running is not None and not self.running.response_complete

    def _last_cycle_closes(self) -> None:
        cycle = self.pipeline[0][0] if self.pipeline else self.running
        if cycle is not None:
            cycle.keep_alive = False

    def _bound_head_and_trailers(self, before: Phase) -> None:
        if self.begun > (before is Phase.WAIT):
            self.fed = 0  # it began somewhere inside this chunk; count from the next one
        elif self.fed > self.limits.header_bytes and self.phase in {Phase.HEAD, Phase.BODY, Phase.DRAIN}:
            self._refuse(refusal.headers_too_large(self.limits))

    def _stop_parser(self, refused: Refusal) -> None:
        self.refused = refused
        raise refused

    def _check_writing(self, now: float) -> None:
        size = self.raw.get_write_buffer_size()
        if size != self.unsent:
            self.unsent, self.stalled_since = size, now
        elif now - self.stalled_since > self.limits.body_timeout:
            self.raw.abort()

    def _refuse(self, refused: Refusal) -> None:
        """Answer what is not a request of ours to serve, behind the responses that are still due."""
        refusal.report(refused, self.client)
        if self.phase is Phase.BODY:
            self._give_up_body()
        if self._busy():
            self._last_cycle_closes()
            self.phase = Phase.LAST
        elif self.raw.is_closing():
            self._end()
        else:
            if self.phase is not Phase.DRAIN:
                self.raw.write(refusal.answer(refused, self.server_state.default_headers))
                self.phase = Phase.LAST
            self.close_gently()

    def _give_up_body(self) -> None:
        """The newest request will never be complete: take it from the queue, or end it."""
        if self.pipeline and self.pipeline[0][0] is self.cycle:
            self.pipeline.popleft()
            return
        started = self.cycle.response_started
        self.cycle.disconnected = self.cycle.response_complete = True
        self.cycle.message_event.set()
        if started:
            self.phase = Phase.DRAIN


class Gentle:
    """The transport that upstream's code sees; its `close` lets the client read the response first."""

    __slots__ = ("_protocol", "_raw", "get_extra_info", "write")

    def __init__(self, protocol: BrokerProtocol, raw: asyncio.Transport) -> None:
        self._protocol = protocol
        self._raw = raw
        self.write = raw.write
        self.get_extra_info = raw.get_extra_info

    def close(self) -> None:
        self._protocol.close_gently()

    def is_closing(self) -> bool:
        return self._protocol.phase is Phase.CLOSING or self._raw.is_closing()
