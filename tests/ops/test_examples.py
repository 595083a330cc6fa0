"""The clients of examples/ against a running installation: a message goes through, whatever is away meanwhile."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support import docs
from support.installation import Installation

EXAMPLES = docs.ROOT / "examples"
NUMBER = "+4915200000000"
# `./broker test` installs Node where it may; elsewhere the run's summary says that it was not shown.
NODE = shutil.which("node")
CLIENTS = ["send.sh", "producer.py", *(["producer.mjs"] if NODE else [])]


def command(
    client: str, installation: Installation, *bodies: str, number: str = NUMBER
) -> tuple[list[str], dict]:
    """How the client is called for an installation: by options or by variables, as its head says."""
    gateway = f"https://localhost:{installation.ports['gateway_port']}"
    files = {
        "ca": installation.certs / "ca.crt",
        "cert": installation.certs / "clients" / "demo" / "client.crt",
        "key": installation.certs / "clients" / "demo" / "client.key",
    }
    path = str(EXAMPLES / client)
    if client == "producer.py":
        options = [text for name, file in files.items() for text in (f"--{name}", str(file))]
        return [sys.executable, path, number, *bodies, "--gateway", gateway, *options], dict(os.environ)
    variables = {name.upper(): str(file) for name, file in files.items()} | {"GATEWAY": gateway}
    program = [NODE, path] if client.endswith(".mjs") else [path]
    return [*program, number, *bodies], os.environ | variables


def run(
    client: str, installation: Installation, *bodies: str, **options: str
) -> subprocess.CompletedProcess[str]:
    words, environ = command(client, installation, *bodies, **options)
    return subprocess.run(words, env=environ, capture_output=True, text=True, timeout=120, check=False)


def ids(output: str, word: str) -> list[str]:
    return re.findall(rf"^{word} ([0-9a-f-]{{36}})$", output, re.MULTILINE)


def shown(installation: Installation, message: str) -> str:
    return installation.broker("events", "show", message).stdout


@pytest.mark.parametrize("client", CLIENTS)
def test_a_message_is_submitted_and_followed(installation: Installation, client: str) -> None:
    """Quotes, backslashes, line ends and other alphabets arrive as they are; exit 0 when it was delivered."""
    done = run(client, installation, 'He said "no\\yes"\nand left. ✓')
    assert done.returncode == 0, done.stderr
    (message,) = ids(done.stdout, "queued")
    assert ids(done.stdout, "delivered") == [message]
    assert "Delivered" in shown(installation, message)


@pytest.mark.parametrize("client", CLIENTS)
def test_what_is_wrong_is_said(installation: Installation, client: str) -> None:
    """A refused message is not sent again and again: one answer, its reason, exit 1."""
    done = run(client, installation, "Hello", number="12")
    assert done.returncode == 1
    assert "validation_error" in done.stderr
    assert "sender_number" in done.stderr


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_gateway_that_is_away_is_waited_for(installation: Installation, client: str) -> None:
    """Started while nobody listens, the client goes on once the gateway is back; it is one message then."""
    installation.stop("gateway")
    marked = f"patience {secrets.token_hex(8)}"
    words, environ = command(client, installation, marked)
    process = await asyncio.create_subprocess_exec(
        *words, env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    installation.start("gateway")
    out, problems = await process.communicate()
    assert process.returncode == 0, problems.decode()
    (message,) = ids(out.decode(), "queued")
    assert shown(installation, message).count("MessageSubmitted") == 1


def test_python_sends_many_at_once(installation: Installation) -> None:
    """A batch: ids in order, each delivered."""
    done = run("producer.py", installation, "one", "two", "three")
    assert done.returncode == 0, done.stderr
    queued = ids(done.stdout, "queued")
    assert len(set(queued)) == 3
    assert sorted(ids(done.stdout, "delivered")) == sorted(queued)


def test_python_says_what_is_wrong_with_one_of_many(installation: Installation) -> None:
    """The one that can never be taken is said, with its field."""
    done = run("producer.py", installation, "one", " ")
    assert done.returncode == 1
    assert "message_body" in done.stderr


def test_the_page_shows_what_the_examples_take() -> None:
    """Every file that docs/producers.md names is there; its commands are the examples' own."""
    page = (docs.ROOT / "docs" / "producers.md").read_text("utf-8")
    named = set(re.findall(r"examples/([\w.]+)", page))
    assert named == {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    for path in sorted(EXAMPLES.iterdir()):
        head = path.read_text("utf-8")[:600]
        assert re.search(rf"examples[/\\]{re.escape(path.name)} ", head), path.name


def defaults(path: Path, pattern: str) -> set[str]:
    return set(re.findall(pattern, path.read_text("utf-8")))


@pytest.mark.parametrize("client", ["send.sh", "producer.py", "producer.mjs", "producer.ps1"])
def test_defaults_are_those_of_up(client: str) -> None:
    """Address and files of the demo client, in every language."""
    found = defaults(EXAMPLES / client, r"(https://localhost:\d+|certs/[\w./]+\.(?:crt|key))")
    demo: Callable[[str], str] = "certs/clients/demo/client.{}".format
    assert found == {"https://localhost:8001", "certs/ca.crt", demo("crt"), demo("key")}
