"""Starting, stopping, sharing a port, and what is measured meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import time
import warnings

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from structlog.testing import capture_logs

from broker.web import application, body, metrics
from broker.web.health import Check, Health
from broker.web.limits import Limits
from broker.web.listening import CannotListen
from broker.web.serving import StartFailed, serve
from support.pki import Pki
from support.serving import connection, listening
from support.waiting import wait_until

WAIT = b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n"
CHILD = """
import asyncio, os, sys
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from broker import lifecycle
from broker.web import application
from broker.web.serving import serve

async def pid(request):
    return PlainTextResponse(str(os.getpid()))

async def main():
    stop = asyncio.Event()
    lifecycle.stop_on_signals(stop)
    app = application.build([Route("/", pid)], role="test")
    await serve(app, host="127.0.0.1", port=int(sys.argv[1]), stop=stop, reuse_port=True,
                on_bound=lambda port: print(port, flush=True))

asyncio.run(main())
"""


@pytest.fixture
def opened() -> asyncio.Event:
    return asyncio.Event()


@pytest.fixture
def inside() -> list[int]:
    return []


@pytest.fixture
def app(opened: asyncio.Event, inside: list[int]):
    async def hello(request):
        return PlainTextResponse("hello")

    async def wait(request):
        inside.append(1)
        await opened.wait()
        return PlainTextResponse("waited")

    async def item(request):
        return Response(status_code=int(request.path_params["status"]))

    return application.build(
        [
            Route("/", hello),
            Route("/wait", wait),
            Route("/items/{status}", item),
            Route("/metrics", metrics.endpoint),
        ],
        role="test",
    )


async def test_a_stop_lets_requests_finish(app, pki: Pki, opened, inside):
    """New connections are refused, idle ones closed, and the request in progress gets its answer."""
    context = pki.client_context()
    async with (
        listening(app, context=pki.server_context()) as server,
        connection(server.port, context) as idle,
        connection(server.port, context) as raw,
    ):
        await raw.send(WAIT)
        await wait_until(lambda: inside)
        server.stop.set()
        assert await idle.ended() == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", server.port)
        opened.set()
        assert (await raw.answer()).body == b"waited"
        assert await raw.ended() == b""
        await server.task


async def test_the_grace_period_ends(app, inside):
    """A request that does not finish is answered 503 `shutting_down`, since its outcome is unknown."""
    async with listening(app, grace=0.2) as server, connection(server.port) as raw:
        await raw.send(WAIT)
        await wait_until(lambda: inside)
        with capture_logs() as logs:
            server.stop.set()
            answered = await raw.answer()
            await server.task
        assert (answered.status, answered.json["error"]) == (503, "shutting_down")
        assert answered.headers["retry-after"] == "1"
        assert [line["event"] for line in logs] == ["grace_period_over"]


async def test_a_silent_handshake_does_not_hold_up_the_end(app, pki: Pki):
    """Neither do half-sent requests."""
    async with (
        listening(app, context=pki.server_context(), grace=30.0) as server,
        connection(server.port) as silent,
        connection(server.port, pki.client_context()) as half,
    ):
        await half.send(WAIT[:10])
        server.stop.set()
        await server.task
        assert await silent.ended() == b""


async def test_no_connection_is_left_behind_by_a_stop(app, pki: Pki):
    """One that is accepted at the very moment is closed, wherever it has got to."""

    async def call(port: int) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            async with connection(port, pki.client_context()) as raw:
                await raw.ended()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        async with listening(app, context=pki.server_context()) as server:
            handshakes = [asyncio.create_task(call(server.port)) for _ in range(50)]
            server.stop.set()
            await server.task
        await asyncio.gather(*handshakes)
        gc.collect()
    assert [str(warning.message) for warning in caught if "laddr" in str(warning.message)] == []


async def test_a_busy_port_is_named(app):
    """The error says which address, and the application is shut down again."""
    async with listening(app) as server:
        with pytest.raises(CannotListen, match=str(server.port)):
            await serve(app, host="127.0.0.1", port=server.port, stop=asyncio.Event())


async def test_an_application_that_refuses_to_start_is_an_error():
    """No sys.exit inside a library call."""

    @contextlib.asynccontextmanager
    async def lifespan(app):
        raise RuntimeError("no")
        yield

    with pytest.raises(StartFailed):
        await serve(
            application.build([], role="test", lifespan=lifespan),
            host="127.0.0.1",
            port=0,
            stop=asyncio.Event(),
        )


async def test_signals_stay_the_callers(app):
    """Serving installs no handler."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with listening(app):
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


async def test_nothing_is_logged_per_request(app, capfd):
    """A request leaves no line behind."""
    with capture_logs() as logs:
        async with listening(app) as server, httpx.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{server.port}/")).text == "hello"
    assert logs == []
    assert capfd.readouterr().err == ""


async def test_connections_past_the_bound_wait(app):
    """They are served as soon as others end."""
    async with (
        listening(app, limits=Limits(connections=2)) as server,
        contextlib.AsyncExitStack() as stack,
        httpx.AsyncClient(timeout=30) as client,
    ):
        for _ in range(2):
            await stack.enter_async_context(connection(server.port))
        asking = asyncio.create_task(client.get(f"http://127.0.0.1:{server.port}/"))
        await asyncio.wait({asking}, timeout=0.3)
        assert not asking.done()
        await stack.aclose()
        assert (await asking).text == "hello"


async def test_several_processes_share_a_port():
    """With `reuse_port` each process gets connections, and the others go on when one ends."""
    children: list[asyncio.subprocess.Process] = []

    async def start(port: int) -> int:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CHILD, str(port), stdout=asyncio.subprocess.PIPE
        )
        children.append(child)
        return int(await child.stdout.readline())

    async def one(port: int) -> int:
        async with httpx.AsyncClient() as client:
            return int((await client.get(f"http://127.0.0.1:{port}/")).text)

    try:
        port = await start(0)
        assert await start(port) == port
        seen: set[int] = set()

        async def both() -> bool:
            seen.add(await one(port))
            return seen == {child.pid for child in children}

        await wait_until(both)
        children[0].terminate()
        assert await children[0].wait() == 0
        assert {await one(port) for _ in range(10)} == {children[1].pid}
    finally:
        for child in children:
            if child.returncode is None:
                child.terminate()
                await child.wait()


def samples(text: str, name: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(sample.labels[label] for label in sorted(sample.labels)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


@pytest.mark.case("TC-P-007")
async def test_requests_are_counted_by_route_never_by_path(app):
    """Role, route template and status are the labels; unknown paths share one."""
    async with (
        listening(app) as server,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client,
    ):
        before = samples((await client.get("/metrics")).text, "broker_http_requests_total")
        for path in ("/items/200", "/items/204", "/items/200", "/none/1", "/none/2"):
            await client.get(path)
        answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    after = samples(answer.text, "broker_http_requests_total")
    grown = {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)}
    assert grown == {
        ("test", "/items/{status}", "200"): 2,
        ("test", "/items/{status}", "204"): 1,
        ("test", "unmatched", "404"): 2,
        ("test", "/metrics", "200"): 1,
    }
    assert samples(answer.text, "broker_http_request_seconds_count")[("test", "/items/{status}")] >= 3


async def test_a_client_that_leaves_is_counted_as_that(pki: Pki):
    """499, not a 500 of ours."""

    async def take(request):
        await body.read(request.scope, request.receive, 1000)
        return Response()

    app = application.build([Route("/leave", take, methods=["POST"])], role="leaving")
    async with listening(app) as server:
        async with connection(server.port) as raw:
            await raw.send(b"POST /leave HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf")
        await wait_until(lambda: b'role="leaving",route="/leave"' in metrics.exposition())
    assert b'role="leaving",route="/leave",status="499"' in metrics.exposition()
    assert b'role="leaving",route="/leave",status="500"' not in metrics.exposition()


async def test_processes_count_together(tmp_path):
    """With a shared directory the text is the sum over all processes, the ended ones included."""
    script = (
        "import sys; from broker.web import metrics\n"
        "metrics.counter('broker_http_refused_total', 'x', ('reason',)).labels('bad_request').inc(2)\n"
        "sys.stdout.buffer.write(metrics.exposition())"
    )
    environment = os.environ | {metrics.MULTIPROCESS: str(tmp_path)}
    for total in (2, 4):
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE, env=environment
        )
        text, _ = await child.communicate()
        assert samples(text.decode(), "broker_http_refused_total") == {("bad_request",): total}


@pytest.mark.parametrize("ok", [True, False])
async def test_health_says_what_is_wrong(ok: bool):
    """200 when every check is ok, else 503; version, time and uptime are there in both."""

    async def checks():
        return {"redis": Check(ok=True), "log": Check(ok=ok, detail="" if ok else "waiting for Redis")}

    app = application.build([Route("/health", Health(checks).endpoint)], role="test")
    async with listening(app) as server, httpx.AsyncClient() as client:
        answer = await client.get(f"http://127.0.0.1:{server.port}/health")
    assert answer.status_code == (200 if ok else 503)
    found = answer.json()
    assert set(found) == {"status", "version", "timestamp", "checks", "uptime_seconds"}
    assert found["status"] == ("healthy" if ok else "unhealthy")
    assert found["checks"] == {"redis": "ok", "log": "ok" if ok else "waiting for Redis"}
    assert found["uptime_seconds"] >= 0
    assert ("retry-after" in answer.headers) is not ok


async def test_the_sidecar_serves_metrics_and_health():
    """Workers and projectors answer both on a port of their own."""

    async def checks():
        return {"redis": Check(ok=True)}

    stop, bound = asyncio.Event(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        application.serve_sidecar(
            checks, role="worker", host="127.0.0.1", port=0, stop=stop, on_bound=bound.set_result
        )
    )
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{await bound}") as client:
        assert (await client.get("/health")).json()["status"] == "healthy"
        assert "broker_http_requests_total" in (await client.get("/metrics")).text
        assert (await client.get("/")).json()["error"] == "not_found"
    stop.set()
    await task


def test_log_lines_of_strangers_are_throttled(monkeypatch):
    """So many a second, and the next that passes says how many were held back."""
    from broker import clock
    from broker.web.throttle import Throttle

    now = time.monotonic()
    monkeypatch.setattr(clock, "monotonic", lambda: now)
    throttle = Throttle(2)
    assert [throttle.admit() for _ in range(5)] == [0, 0, None, None, None]
    now += 1
    assert throttle.admit() == 3
