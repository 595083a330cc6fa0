"""A webhook set up from the shell, in the system as its users run it, checked with the recipients' own library."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import subprocess
from functools import partial

import pytest
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from broker.errors import SettingsError
from broker.settings import load
from broker.web import tls
from support import system as systems
from support.pki import Pki
from support.serving import listening
from support.waiting import wait_until

GIVEN = "whsec_" + base64.b64encode(bytes(range(32))).decode()


class Recipient:
    """Keeps what it was sent."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.app = Starlette(routes=[Route("/hook", self.hook, methods=["POST"])])

    async def hook(self, request):
        self.requests.append((dict(request.headers), await request.body()))
        return Response(status_code=204)


async def followed(send, recipient: Recipient, secret: str) -> bool:
    """Whether what is sent now arrives, signed with this secret."""
    await send(1)
    try:
        return bool(recipient.requests) and bool(Verifier(secret).verify(*reversed(recipient.requests[0])))
    except WebhookVerificationError:
        return False


@pytest.fixture(scope="module")
def pki(tmp_path_factory) -> Pki:
    return Pki(tmp_path_factory.mktemp("internal-ca"))


async def test_a_secret_given_or_shown_at_the_shell_verifies_what_arrives(tmp_path, pki):
    """`client route … webhook`: with the very text of the secret, the standard's library accepts every request."""
    recipient = Recipient()
    made = systems.running(
        tmp_path / "system", webhook_allow_private="true", webhook_ca_file=pki.ca, retry_interval=1.0
    )
    async with listening(recipient.app, context=pki.server_context()) as running:
        url = f"https://localhost:{running.port}/hook"
        system = await asyncio.to_thread(made.__enter__)
        try:
            for options, given in ((["--secret", GIVEN], GIVEN), ([], None)):
                routed = await asyncio.to_thread(
                    system.run, "client", "route", "demo", "webhook", url, *options
                )
                assert routed.returncode == 0, routed.stderr
                shown = re.search(r"whsec_\S+", routed.stdout)
                secret = given or shown[0]

                async def send(count: int) -> subprocess.CompletedProcess[str]:
                    recipient.requests.clear()
                    sender = ("send", "--from", "+4915200000000", "--body", "Grüße", "--wait")
                    return await asyncio.to_thread(system.run, *sender, "--count", str(count))

                # Workers follow the registry within a second.
                await wait_until(partial(followed, send, recipient, secret), what="the new route")
                sent = await send(3)
                assert sent.returncode == 0, f"{sent.stdout}{sent.stderr}{system.logs()}"
                await wait_until(lambda: len(recipient.requests) == 3)
                for headers, body in recipient.requests:
                    assert Verifier(secret).verify(body, headers)["message_body"] == "Grüße"
                    assert json.loads(body)["message_id"] == headers["webhook-id"]
                    with pytest.raises(WebhookVerificationError):
                        Verifier(secret).verify(body + b" ", headers)
        finally:
            await asyncio.to_thread(made.__exit__, None, None, None)


def test_an_extra_ca_adds_to_the_systems(pki):
    """`webhook_ca_file` is trusted besides what the system trusts, not instead of it."""
    system, extra = tls.public_context(None, "x"), tls.public_context(pki.ca, "x")
    assert extra.cert_store_stats()["x509_ca"] == system.cert_store_stats()["x509_ca"] + 1
    assert extra.check_hostname


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_ca_file_that_cannot_be_used_stops_the_start(tmp_path, content):
    """The error names the setting, its variable and the file."""
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    settings = load(environ={"BROKER_WEBHOOK_CA_FILE": str(path)})
    with pytest.raises(SettingsError, match=r"webhook_ca_file \(BROKER_WEBHOOK_CA_FILE\).*ca\.pem"):
        tls.public_context(settings.webhook_ca_file, "webhook_ca_file")
