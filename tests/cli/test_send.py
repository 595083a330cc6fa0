"""`send`, and the client behind it, against a running system."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
from pathlib import Path

import pytest

from broker import client as clients
from broker.web import tls
from support.proxy import Proxy
from support.system import System

NUMBER = "+4915200000000"


def send(system: System, *args: str):
    return system.run("send", "--from", NUMBER, "--body", "Hello", *args)


def test_a_message_is_followed_to_its_delivery(system: System) -> None:
    """`--wait --json` prints the gateway's status once there is an outcome, and exits 0 when it is `delivered`."""
    done = send(system, "--wait", "--json", "--metadata", '{"order": 7}')
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    assert (status["status"], status["client_id"]) == ("delivered", "demo")


def test_many_messages_are_sent_in_batches(system: System) -> None:
    """`--count` submits every one of them and, with `--wait`, counts the outcomes."""
    done = send(system, "--count", "1100", "--wait", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["accepted"], report["refused"]) == (1100, [])
    assert report["outcomes"] == {"delivered": 1100}
    assert len(set(report["message_ids"])) == 1100


def test_the_same_key_is_the_same_message(system: System) -> None:
    """Again under the same idempotency key: the same id, marked as replayed; another text: a clear conflict."""
    first = json.loads(send(system, "--idempotency-key", "order-7", "--json").stdout)
    again = json.loads(send(system, "--idempotency-key", "order-7", "--json").stdout)
    assert again["message_id"] == first["message_id"]
    assert (first["replayed"], again["replayed"]) == (False, True)
    other = system.run("send", "--from", NUMBER, "--body", "Other", "--idempotency-key", "order-7")
    assert other.returncode == 1
    assert "idempotency_conflict" in other.stderr


def test_a_refusal_names_the_fields(system: System) -> None:
    """What the gateway refuses is one clear error with every field, no traceback, exit code 1."""
    done = system.run("send", "--from", "0152", "--body", " ")
    assert done.returncode == 1
    assert "sender_number" in done.stderr
    assert "message_body" in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_use_is_exit_code_2(system: System) -> None:
    """Metadata that is no JSON object never leaves the machine."""
    for metadata in ("{", "[1]"):
        done = send(system, "--metadata", metadata)
        assert done.returncode == 2
        assert "--metadata" in done.stderr


def test_a_client_without_certificate_is_told_how_to_get_one(system: System) -> None:
    """The error names the missing file and the two commands."""
    done = send(system, "--client", "nobody")
    assert done.returncode == 1
    assert "broker cert issue nobody" in done.stderr


def test_without_a_gateway_the_error_asks_for_up(system: System, tmp_path: Path) -> None:
    """Nothing listens: one line that says so and what to run."""
    shutil.copytree(system.certs, tmp_path / "certs")
    done = System(tmp_path, gateway_port=1).run("send", "--from", NUMBER, "--body", "Hello")
    assert done.returncode == 1
    assert "Nothing listens on https://127.0.0.1:1: is `broker up` running?" in done.stderr


@pytest.fixture
async def proxy(system: System):
    """A proxy between a client and the gateway."""
    found = Proxy(lambda: asyncio.open_connection("127.0.0.1", system.overrides["gateway_port"]))
    await found.start()
    yield found
    await found.stop()


async def test_a_lost_answer_is_asked_for_again_under_the_same_key(system: System, proxy: Proxy) -> None:
    """The gateway took the message but its answer was lost: the client's next try gets that answer, no copy."""
    async with clients.connect(f"https://127.0.0.1:{proxy.port}", system.certs, "demo") as client:
        await client.health()
        proxy.mode, proxy.drops = "drop-reply", 1
        accepted = await client.submit(clients.Message(NUMBER, "Hello"))
        assert proxy.dropped == 1
        assert accepted.replayed
        proxy.drops = 1
        results = await client.batch([clients.Message(NUMBER, f"Hello {n}") for n in range(3)])
    assert proxy.dropped == 2
    assert all(isinstance(result, clients.Accepted) and result.replayed for result in results)


async def test_a_certificate_of_another_authority_is_a_clear_error(system: System, pki_elsewhere) -> None:
    """Neither side trusts the other's CA: `handshake_failed`, at once, without retries."""
    url = f"https://127.0.0.1:{system.overrides['gateway_port']}"
    ca, certificate, key = pki_elsewhere
    with pytest.raises(clients.Untrusted):
        await _submit(url, tls.client_context(ca, certificate, key))
    with pytest.raises(clients.Untrusted):
        await _submit(url, tls.client_context(system.certs / "ca.crt", certificate, key))


async def _submit(url: str, context: ssl.SSLContext) -> None:
    async with clients.Client(url, context, retry_for=5) as client:
        await client.submit(clients.Message(NUMBER, "Hello"))


@pytest.fixture
def pki_elsewhere(tmp_path: Path) -> tuple[Path, Path, Path]:
    """CA, certificate and key of another installation."""
    from support.pki import Pki

    pki = Pki(tmp_path / "pki")
    certificate, key, _ = pki.client("demo")
    return pki.ca, certificate, key
