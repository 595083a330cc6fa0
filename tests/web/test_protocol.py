"""What a connection may and may not do, byte by byte, in the clear and over TLS."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from structlog.testing import capture_logs

from broker.web import application, body
from broker.web.limits import Limits
from support.pki import Pki
from support.serving import Raw, connection, listening
from support.waiting import wait_until

# A client that waits for the close waits for the linger time.
USUAL = Limits(linger_timeout=0.1)
QUICK = Limits(
    header_timeout=0.3, body_timeout=0.3, idle_timeout=0.3, linger_timeout=0.2, handshake_timeout=5.0
)
GET = b"GET /hello HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nhost: x\r\n"
MEGABYTE = 1024 * 1024


class Gate:
    """Requests of `/wait` stay in progress until it opens."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.inside = 0
        self.ended = 0


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def app(gate: Gate):
    async def hello(request):
        return Response("hello")

    async def echo(request):
        try:
            raw = await body.read(request.scope, request.receive, MEGABYTE)
        finally:
            gate.ended += 1
        return JSONResponse({"size": len(raw)})

    async def wait(request):
        gate.inside += 1
        await gate.opened.wait()
        return Response("waited")

    async def flood(request):
        try:
            return Response(b"x" * 64 * MEGABYTE)
        finally:
            gate.inside += 1

    return application.build(
        [
            Route("/hello", hello),
            Route("/echo", echo, methods=["POST"]),
            Route("/wait", wait),
            Route("/flood", flood),
        ],
        role="test",
    )


@pytest.fixture(params=["plain", "tls"])
def open_to(request, app, pki: Pki):
    """Open a listener and one connection to it, in the clear or over TLS."""
    contexts = (pki.server_context(), pki.client_context()) if request.param == "tls" else (None, None)

    @contextlib.asynccontextmanager
    async def opened(limits: Limits = USUAL):
        async with (
            listening(app, context=contexts[0], limits=limits) as server,
            connection(server.port, contexts[1]) as raw,
        ):
            server.client_context = contexts[1]
            yield server, raw

    return opened


async def problem(raw: Raw, status: int, code: str) -> None:
    """The next answer is this problem document, whole, and then the server closes."""
    answered = await raw.answer()
    assert (answered.status, answered.json["error"]) == (status, code)
    assert answered.json["status"] == status
    assert answered.headers["content-type"] == "application/problem+json"
    assert answered.headers["x-correlation-id"] == answered.json["correlation_id"]
    assert answered.headers["connection"] == "close"
    assert await raw.ended() == b""


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"rubbish\r\n\r\n",
        b"\x00\x01\x02\x03",
        b"GET /hello HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /h\xc3\xa9llo HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nna me: x\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nname: a\x00b\r\n\r\n",
        POST + b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"content-length: 1\r\ncontent-length: 2\r\n\r\n",
        POST + b"content-length: -1\r\n\r\n",
        POST + b"content-length : 1\r\n\r\nx",
        POST + b"transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        POST + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        POST + b"content-type: text/plain\r\ncontent-type: application/json\r\n\r\n",
        POST + b"idempotency-key: a\r\nIdempotency-Key: b\r\n\r\n",
        POST + b"host: y\r\n\r\n",
        b"GET /hello HTTP/1.1\r\n\r\n",
        POST + b"content-length: 99999999999999999999999\r\n\r\n",
    ],
)
async def test_what_is_not_http_gets_the_problem_document(open_to, request_bytes: bytes):
    """Never a bare text: 400 `bad_request`, and the connection closes."""
    async with open_to() as (_, raw):
        await raw.send(request_bytes)
        await problem(raw, 400, "bad_request")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /hello HTTP/1.1\r\nhost: x\r\nbig: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nhost: x\r\nbig: " + b"x" * 100_000,
        b"GET /hello HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 10_000 + b"\r\n",
        GET + b"GET /hello HTTP/1.1\r\nbig: " + b"x" * 400_000,
    ],
    ids=["one", "endless", "many", "second"],
)
async def test_headers_are_bounded(open_to, head: bytes):
    """Past 32 KB of headers the answer is 431, however they are cut up."""
    async with open_to() as (_, raw):
        sending = asyncio.create_task(raw.send(head))
        if head.startswith(GET):
            assert (await raw.answer()).status == 200
        await problem(raw, 431, "headers_too_large")
        await asyncio.wait({sending})


async def test_headers_that_trickle_in_are_bounded(open_to):
    """The bound is on the sum of all pieces of one head."""
    async with open_to() as (_, raw):
        await raw.send(b"GET /hello HTTP/1.1\r\nhost: x\r\nbig: ")
        reading = asyncio.create_task(raw.answer())
        while not reading.done():
            with contextlib.suppress(ConnectionError):
                await raw.send(b"x" * 4096)
            await asyncio.sleep(0)
        assert reading.result().status == 431


async def test_large_bodies_do_not_count_as_headers(open_to):
    """A body that arrives in the same piece as its head, and a head behind a body, are within the bound."""
    async with open_to() as (_, raw):
        one = POST + b"content-length: 200000\r\n\r\n" + b"x" * 200_000
        await raw.send(one + one + GET[:-2])
        assert (await raw.answer()).json == {"size": 200_000}
        assert (await raw.answer()).json == {"size": 200_000}
        await raw.send(GET[-2:])
        assert (await raw.answer()).body == b"hello"


async def test_the_url_is_bounded(open_to):
    """A URL past 8 KB is 414."""
    async with open_to() as (_, raw):
        await raw.send(b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nhost: x\r\n\r\n")
        await problem(raw, 414, "uri_too_long")


async def test_a_silent_connection_is_cut(open_to):
    """Nothing sent, nothing answered: closed when the header timeout is over."""
    async with open_to(QUICK) as (_, raw):
        assert await raw.ended() == b""


async def test_a_half_sent_head_is_cut(open_to):
    """408, also for one that sends a byte now and then: the time is for the whole head."""
    async with open_to(QUICK) as (_, raw):
        reading = asyncio.create_task(raw.answer())
        for byte in GET[:-4] * 1000:
            if reading.done():
                break
            with contextlib.suppress(ConnectionError):
                await raw.send(bytes([byte]))
            await asyncio.wait({reading}, timeout=0.02)
        answered = await reading
        assert (answered.status, answered.json["error"]) == (408, "request_timeout")
        assert await raw.ended() == b""


async def test_a_half_sent_body_is_cut(open_to, gate: Gate):
    """408, and the application learns that the body never comes."""
    async with open_to(QUICK) as (_, raw):
        await raw.send(POST + b"content-length: 100\r\n\r\nhalf")
        await problem(raw, 408, "request_timeout")
        await wait_until(lambda: gate.ended == 1)


async def test_a_slow_body_that_makes_progress_is_taken(open_to):
    """The body timeout is for silence, not for slowness."""
    async with open_to(QUICK) as (_, raw):
        await raw.send(POST + b"content-length: 10\r\n\r\n")
        for _ in range(10):
            await raw.send(b"x")
            await asyncio.wait({asyncio.create_task(asyncio.Event().wait())}, timeout=0.1)
        assert (await raw.answer()).json == {"size": 10}


async def test_a_body_may_not_take_for_ever(open_to, gate: Gate):
    """408 for one that sends a byte now and then: silence is bounded, and so is the whole."""
    async with open_to(Limits(body_total=0.3, linger_timeout=0.1)) as (_, raw):
        await raw.send(POST + b"content-length: 1000000\r\n\r\n")

        async def sent_until_answered() -> bool:
            await raw.send(b"x")
            return bool(raw.reader._buffer)

        await wait_until(sent_until_answered)
        assert (await raw.answer()).json["error"] == "request_timeout"
        await wait_until(lambda: gate.ended == 1)


@pytest.mark.parametrize("path", [b"/echo", b"/nowhere"])
async def test_trailers_are_bounded_and_dropped(open_to, path: bytes):
    """They join no request, and endless ones end the connection, whether their request was answered or not."""
    head = b"POST " + path + b" HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    async with open_to() as (_, raw):
        await raw.send(head + b"host: y\r\nx-a: 1\r\n\r\n")
        first = await raw.answer()
        assert first.status == (200 if path == b"/echo" else 404)
        await raw.send(head)
        answered = None if path == b"/echo" else await raw.answer()
        with contextlib.suppress(ConnectionError):
            for _ in range(4096):
                await raw.send(b"x: " + b"y" * 1000 + b"\r\n")
                # Sending on after the refusal would lose it to a reset.
                if answered is None and raw.reader._buffer:
                    break
        if answered is None:
            assert (await raw.answer()).status == 431
        with contextlib.suppress(ConnectionError):
            assert await raw.ended() == b""


async def test_an_idle_connection_is_closed(open_to):
    """A kept connection without a next request ends after the idle timeout."""
    async with open_to(QUICK) as (_, raw):
        await raw.send(GET)
        assert (await raw.answer()).status == 200
        assert await raw.ended() == b""


async def test_a_slow_handler_is_not_cut(open_to, gate: Gate):
    """Timeouts are for clients; a request in progress may take longer than all of them."""
    async with open_to(QUICK) as (_, raw):
        await raw.send(GET.replace(b"/hello", b"/wait"))
        await wait_until(lambda: gate.inside == 1)
        asyncio.get_running_loop().call_later(1.0, gate.opened.set)
        assert (await raw.answer()).body == b"waited"


async def test_a_client_that_takes_no_answer_is_cut(open_to, gate: Gate):
    """A response that nobody reads does not hold its request for ever."""
    async with open_to(QUICK) as (server, raw):
        raw.reader._limit = 1  # the stream stops reading at twice this
        await raw.send(GET.replace(b"/hello", b"/flood"))
        await wait_until(lambda: gate.inside == 1)
        server.stop.set()
        await server.task


async def test_pipelined_requests_are_answered_in_order(open_to):
    """Several requests in one piece get as many answers, each whole."""
    async with open_to() as (_, raw):
        await raw.send(GET + POST + b"content-length: 3\r\n\r\nabc" + GET)
        assert (await raw.answer()).body == b"hello"
        assert (await raw.answer()).json == {"size": 3}
        assert (await raw.answer()).body == b"hello"


async def test_rubbish_behind_a_request_does_not_answer_it(open_to, gate: Gate):
    """The request in progress gets its own answer, and nothing else is written: the connection closes."""
    async with open_to() as (_, raw):
        await raw.send(GET.replace(b"/hello", b"/wait") + b"rubbish\r\n\r\n")
        await wait_until(lambda: gate.inside == 1)
        gate.opened.set()
        answered = await raw.answer()
        assert (answered.status, answered.body) == (200, b"waited")
        assert await raw.ended() == b""


async def test_requests_before_the_rubbish_are_all_answered(open_to, gate: Gate):
    """Those that wait behind the one in progress too; then the connection closes."""
    async with open_to() as (_, raw):
        await raw.send(GET.replace(b"/hello", b"/wait") + GET + GET + b"rubbish\r\n\r\n")
        await wait_until(lambda: gate.inside == 1)
        gate.opened.set()
        answers = [await raw.answer() for _ in range(3)]
        assert [answered.body for answered in answers] == [b"waited", b"hello", b"hello"]
        assert answers[2].headers["connection"] == "close"
        assert await raw.ended() == b""


async def test_a_flood_of_pipelined_requests_is_cut(open_to, gate: Gate):
    """What waits on one connection is bounded: so many are answered, then it closes."""
    async with open_to(Limits(pipelined=5, linger_timeout=0.1)) as (_, raw):
        await raw.send(GET.replace(b"/hello", b"/wait") + GET * 1000)
        await wait_until(lambda: gate.inside == 1)
        gate.opened.set()
        assert (await raw.ended()).count(b"HTTP/1.1 200") == 6


async def test_a_broken_body_behind_a_request_does_not_answer_it(open_to, gate: Gate):
    """As before, when the second request's head was fine and its chunks are not."""
    async with open_to() as (_, raw):
        await raw.send(GET.replace(b"/hello", b"/wait") + POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n")
        await wait_until(lambda: gate.inside == 1)
        gate.opened.set()
        assert (await raw.answer()).body == b"waited"
        assert await raw.ended() == b""


async def test_broken_chunks_are_a_bad_request(open_to, gate: Gate):
    """400, and the application learns that the body never comes."""
    async with open_to() as (_, raw):
        await raw.send(POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n")
        await problem(raw, 400, "bad_request")
        await wait_until(lambda: gate.ended == 1)


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_huge_body_gets_its_answer_and_leaves_the_connection_usable(open_to, framing: str):
    """10 MB against a bound of 1 MB: 413, not a reset; the rest is thrown away and the next request works."""
    async with open_to() as (_, raw):
        size = 10 * MEGABYTE
        if framing == "length":
            head, payload = b"content-length: %d\r\n\r\n" % size, b"x" * size
        else:
            head = b"transfer-encoding: chunked\r\n\r\n"
            payload = b"%x\r\n" % size + b"x" * size + b"\r\n0\r\n\r\n"
        sending = asyncio.create_task(raw.send(POST + head + payload))
        answered = await raw.answer()
        assert (answered.status, answered.json["error"]) == (413, "body_too_large")
        await sending
        await raw.send(GET)
        assert (await raw.answer()).body == b"hello"


async def test_an_endless_body_is_cut(open_to):
    """What is thrown away is bounded too."""
    async with open_to(Limits(linger_bytes=4 * MEGABYTE, linger_timeout=5.0)) as (_, raw):
        await raw.send(POST + b"transfer-encoding: chunked\r\n\r\n")
        chunk = b"%x\r\n" % MEGABYTE + b"x" * MEGABYTE + b"\r\n"
        cut = False
        while not cut:
            try:
                await raw.send(chunk)
            except ConnectionError:
                cut = True


async def test_a_client_that_asks_first_is_told_before_it_sends(open_to):
    """`Expect: 100-continue` with too large a length: 413 at once, and the connection is not used again."""
    async with open_to() as (_, raw):
        await raw.send(POST + b"content-length: 10000000\r\nexpect: 100-continue\r\n\r\n")
        await problem(raw, 413, "body_too_large")


async def test_a_client_that_asks_first_is_asked_for_the_body(open_to):
    """Within the bound it gets 100 Continue, then its answer, and may go on using the connection."""
    async with open_to() as (_, raw):
        await raw.send(POST + b"content-length: 3\r\nexpect: 100-continue\r\n\r\n")
        assert (await raw.answer()).status == 100
        await raw.send(b"abc")
        answered = await raw.answer()
        assert answered.json == {"size": 3}
        assert "connection" not in answered.headers
        await raw.send(GET)
        assert (await raw.answer()).body == b"hello"


async def test_an_upgrade_is_ignored(open_to):
    """The request is served as what it also is, HTTP/1.1, and the connection ends there."""
    async with open_to() as (_, raw):
        await raw.send(b"GET /hello HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        answered = await raw.answer()
        assert (answered.status, answered.body) == (200, b"hello")
        assert await raw.ended() == b""


async def test_http_1_0_is_answered_and_closed(open_to):
    """An old client gets its answer and the end of the connection."""
    async with open_to() as (_, raw):
        await raw.send(b"GET /hello HTTP/1.0\r\n\r\n")
        assert (await raw.answer()).body == b"hello"
        assert await raw.ended() == b""


async def test_a_client_that_leaves_is_no_error(open_to, gate: Gate):
    """A connection cut inside a body ends its request, without a log line of failure."""
    with capture_logs() as logs:
        async with open_to() as (_, raw):
            await raw.send(POST + b"content-length: 100\r\n\r\nhalf")
            raw.writer.transport.abort()
            await wait_until(lambda: gate.ended == 1)
    assert [line for line in logs if line["log_level"] == "error"] == []


async def test_more_requests_than_allowed_get_503(open_to, gate: Gate):
    """The bound is on requests in progress, not on connections, and says when to come back."""
    async with open_to(Limits(in_flight=2)) as (server, raw), contextlib.AsyncExitStack() as stack:
        others = [
            await stack.enter_async_context(connection(server.port, server.client_context)) for _ in range(4)
        ]
        for other in others[:2]:
            await other.send(GET.replace(b"/hello", b"/wait"))
        await wait_until(lambda: gate.inside == 2)
        await raw.send(GET.replace(b"host", b"x-correlation-id: abc\r\nhost"))
        answered = await raw.answer()
        assert (answered.status, answered.json["error"]) == (503, "overloaded")
        assert answered.headers["retry-after"] == "1"
        assert answered.headers["x-correlation-id"] == "abc"
        gate.opened.set()
        for other in others[:2]:
            assert (await other.answer()).body == b"waited"
        await raw.send(GET)
        assert (await raw.answer()).body == b"hello"
