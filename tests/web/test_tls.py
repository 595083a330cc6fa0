"""Who gets through the handshake, and what the application then knows of them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

import httpx
import pytest
from starlette.responses import JSONResponse
from starlette.routing import Route
from structlog.testing import capture_logs

from broker import clock
from broker.web import application, metrics, tls
from broker.web.limits import Limits
from support.pki import Pki
from support.serving import Running, connection, listening
from support.waiting import wait_until


async def whoami(request):
    peer = request.state.peer
    if peer is None:
        return JSONResponse(None)
    return JSONResponse(
        {
            "fingerprint": peer.fingerprint,
            "serial": peer.serial,
            "subject": peer.subject,
            "not_before_ms": peer.not_before_ms,
            "not_after_ms": peer.not_after_ms,
        }
    )


app = application.build([Route("/", whoami)], role="test")


def url(server: Running) -> str:
    return f"https://localhost:{server.port}/"


async def refused(server: Running, context: ssl.SSLContext) -> bool:
    """Whether the server hangs up on a client that shakes hands like this.

    TLS 1.3 tells the client only after its own side of the handshake, hence the read.
    """
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        async with connection(server.port, context) as raw:
            await raw.send(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
            return (await raw.reader.read(1)) == b""
    return True


@pytest.mark.case("TC-S-004")
async def test_an_expired_certificate_of_ours_reaches_the_application(pki: Pki):
    """The TLS layer lets it through (NO_CHECK_TIME), so that the 403 can say what is wrong."""
    cert, key, issued = pki.expired()
    async with (
        listening(app, context=pki.server_context()) as server,
        httpx.AsyncClient(verify=pki.client_context(cert, key)) as client,
    ):
        seen = (await client.get(url(server))).json()
    assert seen["fingerprint"] == issued.fingerprint
    assert seen["not_after_ms"] == issued.not_after_ms
    assert seen["not_after_ms"] < clock.now_ms()


async def test_a_certificate_that_is_not_for_clients_reaches_the_application(pki: Pki, tmp_path):
    """The application can say so; one of another CA still fails the handshake, and so do both where one is required."""
    context = pki.client_context(*pki.for_servers()[:2])
    strange = pki.client_context(*Pki(tmp_path).for_servers()[:2])
    async with (
        listening(app, context=pki.server_context()) as server,
        httpx.AsyncClient(verify=context) as client,
    ):
        assert (await client.get(url(server))).status_code == 200
        assert await refused(server, strange)
    async with listening(app, context=pki.server_context(require_client=True)) as server:
        assert await refused(server, context)


async def test_a_certificate_of_ours_is_known_by_its_fingerprint(pki: Pki):
    """Fingerprint, serial, subject and dates are those that the authority issued."""
    cert, key, issued = pki.client()
    async with (
        listening(app, context=pki.server_context()) as server,
        httpx.AsyncClient(verify=pki.client_context(cert, key)) as client,
    ):
        seen = (await client.get(url(server))).json()
    assert seen == {
        "fingerprint": issued.fingerprint,
        "serial": issued.serial,
        "subject": "CN=demo,OU=producer,O=Message Broker",
        "not_before_ms": issued.not_before_ms,
        "not_after_ms": issued.not_after_ms,
    }


async def test_without_a_certificate_there_is_no_peer(pki: Pki):
    """Health must be readable without one; the application decides what is not."""
    async with (
        listening(app, context=pki.server_context()) as server,
        httpx.AsyncClient(verify=pki.client_context()) as client,
    ):
        assert (await client.get(url(server))).json() is None


async def test_a_required_certificate_is_required(pki: Pki):
    """With `require_client` the handshake fails without one."""
    async with listening(app, context=pki.server_context(require_client=True)) as server:
        assert await refused(server, pki.client_context())


@pytest.mark.case("TC-S-003")
async def test_strangers_fail_the_handshake_and_are_logged_and_counted(pki: Pki, tmp_path):
    """A certificate of another CA or a self-signed one: no answer, one log line with peer and reason, one count."""
    other = Pki(tmp_path)
    strangers = {
        "unable to get local issuer certificate": other.client()[:2],
        "self-signed certificate": pki.self_signed(),
    }
    async with listening(app, context=pki.server_context()) as server:
        for reason, (cert, key) in strangers.items():
            before = failures("untrusted")
            with capture_logs() as logs:
                assert await refused(server, pki.client_context(cert, key))
                await wait_until(lambda before=before: failures("untrusted") == before + 1)
            [line] = [line for line in logs if line["event"] == "tls_handshake_failed"]
            assert line["reason"] == reason
            assert line["peer"][0] == "127.0.0.1"


async def test_rubbish_and_a_silent_peer_fail_the_handshake(pki: Pki):
    """Neither plain HTTP nor silence holds a connection open."""
    async with listening(app, context=pki.server_context(), limits=Limits(handshake_timeout=0.2)) as server:
        before = failures("protocol")
        async with connection(server.port) as raw:
            await raw.send(b"GET / HTTP/1.1\r\n\r\n")
            await raw.ended()
        await wait_until(lambda: failures("protocol") == before + 1)
        before = failures("timeout")
        async with connection(server.port) as raw:
            assert await raw.ended() == b""
        await wait_until(lambda: failures("timeout") == before + 1)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
async def test_old_tls_is_refused(pki: Pki, version: ssl.TLSVersion):
    """Only TLS 1.2 and later are spoken."""
    context = pki.client_context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    before = failures("protocol")
    async with listening(app, context=pki.server_context()) as server:
        assert await refused(server, context)
        await wait_until(lambda: failures("protocol") == before + 1)


def resume(
    port: int, context: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[bool, bytes, ssl.SSLSession]:
    """One blocking request; whether its session was resumed, the answer, and the session it got."""
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost", session=session) as sock,
    ):
        sock.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        answer = b""
        while data := sock.recv(65536):
            answer += data
        return bool(sock.session_reused), answer, sock.session


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_no_session_is_resumed_from_a_ticket(pki: Pki, version: ssl.TLSVersion):
    """No tickets are given; whatever a second connection does, its peer is still known by its certificate."""
    cert, key, issued = pki.client()
    context = pki.client_context(cert, key)
    context.minimum_version = context.maximum_version = version
    async with listening(app, context=pki.server_context()) as server:
        _, first, session = await asyncio.to_thread(resume, server.port, context, None)
        assert not session.has_ticket
        _, second, _ = await asyncio.to_thread(resume, server.port, context, session)
    assert issued.fingerprint.encode() in first
    assert issued.fingerprint.encode() in second


async def test_a_client_does_not_take_another_server_for_ours(pki: Pki, tmp_path):
    """A server of another CA, and a client certificate used as a server's, are refused by our callers."""
    other = Pki(tmp_path)
    async with (
        listening(app, context=other.server_context()) as server,
        httpx.AsyncClient(verify=pki.client_context()) as client,
    ):
        with pytest.raises(httpx.ConnectError):
            await client.get(url(server))
    cert, key, _ = pki.client("imposter")
    async with (
        listening(app, context=tls.server_context(cert, key, pki.ca)) as server,
        httpx.AsyncClient(verify=pki.client_context()) as client,
    ):
        with pytest.raises(httpx.ConnectError):
            await client.get(url(server))


def failures(kind: str) -> float:
    """How many handshakes failed for this kind of reason."""
    labelled = metrics.counter("broker_tls_handshake_failures_total", "Failed TLS handshakes.", ("reason",))
    return labelled.labels(kind)._value.get()
