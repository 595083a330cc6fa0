"""The webhook channel against real TLS servers."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from email.utils import formatdate

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook as Verifier
from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from broker.domain import ids
from broker.domain.message import Accepted, Failed, NeedsPerson, Refused
from broker.domain.retry import RetryPolicy
from broker.events import types
from broker.events.sealing import Plain
from broker.services.delivery.channels import addresses, webhook
from broker.services.delivery.channels.addresses import AddressRefused, GuardedBackend
from broker.services.delivery.channels.base import Delivery
from broker.services.delivery.channels.webhook import Webhook
from support.pki import Pki
from support.rig import QUICK
from support.serving import listening

SECRET = b"0123456789abcdef0123456789abcdef"


class Recipient:
    """Answers as told and keeps what it was sent."""

    def __init__(self) -> None:
        self.status, self.headers, self.requests = 204, {}, []
        self.answer = None
        self.app = Starlette(routes=[Route("/hook", self.hook, methods=["POST", "GET"])])

    async def hook(self, request):
        self.requests.append((dict(request.headers), await request.body()))
        if self.answer is not None:
            return await self.answer()
        return Response(status_code=self.status, headers=self.headers)


@pytest.fixture(scope="module")
def pki(tmp_path_factory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
async def recipient(pki):
    made = Recipient()
    async with listening(made.app, context=pki.server_context()) as running:
        made.url = f"https://localhost:{running.port}/hook"
        yield made


@pytest.fixture
async def hooks(pki):
    channel = Webhook(timeout=5.0, allow_private=True, context=pki.client_context())
    yield channel
    await channel.aclose()


def delivery(url: str | None, secret: bytes | None = SECRET) -> Delivery:
    return Delivery(
        message_id=ids.new(0), client_id="demo", plain=Plain("+4915200000000", "Grüße", b'{"k":[1]}'),
        cycle=1, attempt=1, worker_id="w", entry="1-0", count=1, queued_at=1_790_000_000_000,
        target=url, secret=secret,
    )  # fmt: skip


@pytest.mark.parametrize("secret", [SECRET, b"whsec_" + base64.b64encode(SECRET)], ids=["key", "whsec"])
async def test_a_webhook_is_signed_after_the_standard(recipient, hooks, secret):
    """What arrives passes the reference library's verification; the message id is the webhook's id."""
    sent = delivery(recipient.url, secret)
    assert await hooks.deliver_one(sent) == Accepted(204)
    [(headers, body)] = recipient.requests
    Verifier(SECRET).verify(body, headers)
    assert headers["webhook-id"] == ids.text(sent.message_id)
    assert json.loads(body) == {
        "message_id": ids.text(sent.message_id),
        "client_id": "demo",
        "sender_number": "+4915200000000",
        "message_body": "Grüße",
        "metadata": {"k": [1]},
        "queued_at": "2026-09-21T14:13:20.000Z",
    }


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (200, {}, Accepted(200)),
        (202, {}, Accepted(202)),
        (
            301,
            {"location": "https://elsewhere.example/"},
            Refused("HTTP 301: redirects are not followed", 301),
        ),
        (400, {}, Refused("HTTP 400", 400)),
        (404, {"retry-after": "7"}, Refused("HTTP 404", 404)),
        (410, {}, Refused("HTTP 410", 410, permanent=True)),
        (429, {"retry-after": "120"}, Refused("HTTP 429", 429, retry_after=120.0)),
        (500, {}, Refused("HTTP 500", 500)),
        (503, {"retry-after": "soon"}, Refused("HTTP 503", 503)),
    ],
)
async def test_what_a_status_means(recipient, hooks, status, headers, expected):
    """2xx is delivered, 410 final, everything else a failed attempt; 429 and 503 may say when to come back."""
    recipient.status, recipient.headers = status, headers
    assert await hooks.deliver_one(delivery(recipient.url)) == expected
    assert len(recipient.requests) == 1


async def test_silence_and_endless_answers_are_bounded(pki, recipient):
    """A recipient that does not answer in time has failed; one that talks without end is not listened to."""
    hooks = Webhook(timeout=0.5, allow_private=True, context=pki.client_context())
    release = asyncio.Event()

    async def silent():
        await release.wait()
        return Response()

    recipient.answer = silent
    assert await hooks.deliver_one(delivery(recipient.url)) == Failed("no answer within 0.5 s")
    release.set()
    sent = 0

    async def endless():
        async def chunks():
            nonlocal sent
            while True:
                sent += 65536
                yield b"x" * 65536
                await asyncio.sleep(0)  # lets the server notice that its client left

        return StreamingResponse(chunks())

    recipient.answer = endless
    assert await hooks.deliver_one(delivery(recipient.url)) == Accepted(200)
    assert sent < 64 * 1024 * 1024
    await hooks.aclose()


async def test_connections_that_fail_are_the_recipients_failure(pki, recipient, hooks):
    """Nobody listening, an unknown host, and a certificate of a CA that is not trusted are failed attempts."""
    assert isinstance(await hooks.deliver_one(delivery("https://localhost:1/")), Failed)
    assert isinstance(await hooks.deliver_one(delivery("https://nowhere.invalid/")), Failed)
    strangers = Webhook(timeout=5.0, allow_private=True, context=ssl.create_default_context())
    answer = await strangers.deliver_one(delivery(recipient.url))
    assert isinstance(answer, Failed)
    assert "CERTIFICATE_VERIFY_FAILED" in answer.reason
    by_address = await hooks.deliver_one(delivery(recipient.url.replace("localhost", "127.0.0.2")))
    assert isinstance(by_address, Failed), "the certificate's names are checked"
    assert recipient.requests == []
    await strangers.aclose()


async def test_private_addresses_are_refused(pki, recipient):
    """⚠ A webhook must not reach into our own network, by address or by a name that leads there."""
    hooks = Webhook(timeout=5.0, context=pki.client_context())
    for host in ("localhost", "127.0.0.1", "[::1]", "10.0.0.1", "169.254.169.254", "[::ffff:127.0.0.1]"):
        answer = await hooks.deliver_one(delivery(recipient.url.replace("localhost", host)))
        assert isinstance(answer, Failed), host
        assert "may not be reached" in answer.reason
    assert recipient.requests == []
    assert isinstance(await hooks.deliver_one(delivery("http://example.com/")), NeedsPerson)
    await hooks.aclose()


async def test_a_name_that_changes_its_answer_gains_nothing(monkeypatch):
    """⚠ DNS rebinding: the address that is connected to is the one that was checked."""
    loop = asyncio.get_running_loop()
    asked = []

    async def rebinding(host, port, **_):
        asked.append(host)
        return [(2, 1, 6, "", ("127.0.0.1" if len(asked) > 1 else "192.168.0.1", port))]

    monkeypatch.setattr(loop, "getaddrinfo", rebinding)
    with pytest.raises(AddressRefused):
        await GuardedBackend(allow_private=False).connect_tcp("rebind.example", 443)
    assert asked == ["rebind.example"]


@given(st.ip_addresses(v=4, network="10.0.0.0/8") | st.ip_addresses(v=4, network="169.254.0.0/16")
       | st.ip_addresses(v=4, network="127.0.0.0/8") | st.ip_addresses(v=4, network="100.64.0.0/10")
       | st.ip_addresses(v=4, network="192.168.0.0/16") | st.ip_addresses(v=4, network="172.16.0.0/12"))  # fmt: skip
def test_no_spelling_of_a_private_address_is_public(address):
    """Private IPv4 addresses stay private inside IPv6: mapped, NAT64, 6to4."""
    number = int(address)
    assert not addresses.public(str(address))
    assert not addresses.public(f"::ffff:{address}")
    assert not addresses.public(f"64:ff9b::{number >> 16:x}:{number & 0xFFFF:x}")
    assert not addresses.public(f"2002:{number >> 16:x}:{number & 0xFFFF:x}::1")


def test_public_addresses_are_public():
    """Ordinary addresses of the internet may be reached, and the odd ones may not."""
    assert all(addresses.public(one) for one in ("1.1.1.1", "8.8.8.8", "2606:4700:4700::1111"))
    assert not any(
        addresses.public(one)
        for one in (
            "224.0.0.1",
            "ff02::1",
            "0.0.0.0",
            "::",
            "fe80::1",
            "fd00:ec2::254",
            "168.63.129.16",
            "::1",
        )
    )


def test_retry_after_in_both_forms():
    """Seconds and HTTP dates are understood, anything else is ignored, and nothing is negative."""
    assert webhook.retry_after("120") == 120
    assert webhook.retry_after(" 0 ") == 0
    assert webhook.retry_after("-5") is None
    assert webhook.retry_after("soon") is None
    assert webhook.retry_after(formatdate(0, usegmt=True)) == 0
    assert webhook.retry_after("9" * 400) == 10**9


async def test_a_route_leads_to_the_clients_own_webhook(rig, recipient, hooks):
    """A client's route names channel, address and sealed secret; code and latency of the answer are recorded."""
    await rig.clients.change_route("demo", "webhook", recipient.url, SECRET, actor="system")
    recipient.status, recipient.headers = 503, {"retry-after": "0"}
    limits = msgspec.structs.replace(QUICK, retry=RetryPolicy(interval=0.05, max_attempts=2))
    async with rig.working(channels=[hooks], limits=limits):
        await asyncio.wait_for(_routed(rig), 10)
        [message] = await rig.submit()
        [done] = await rig.all_finished([message])
    assert (done.outcome, done.attempts) == ("failed", 2)
    attempts = [
        one.event for one in await rig.events(message) if isinstance(one.event, types.DeliveryAttempted)
    ]
    assert [(one.channel, one.code, one.error) for one in attempts] == [("webhook", 503, "HTTP 503")] * 2
    assert all(one.latency_ms >= 0 for one in attempts)
    for headers, body in recipient.requests:
        Verifier(SECRET).verify(body, headers)


async def _routed(rig) -> None:
    while (entry := rig.trust.client("demo")) is None or entry.channel != "webhook":
        await asyncio.sleep(0.01)
