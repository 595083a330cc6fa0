"""The whole way by pages alone: a certificate, a message, one that failed and why, sent again, proved to an auditor."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from support import browsing
from support.browsing import NUMBER, PASSWORD, Person
from support.system import System

pytestmark = pytest.mark.asyncio(loop_scope="session")

CLIENT = "bakery"
WHY = "the recipient is back"
SEND = """
import json, ssl, sys, urllib.request
url, folder, name, number = sys.argv[1:]
context = ssl.create_default_context(cafile=f"{folder}/ca.crt")
context.load_cert_chain(f"{folder}/{name}.crt", f"{folder}/{name}.key")
body = json.dumps({"sender_number": number, "message_body": "two loaves"}).encode()
request = urllib.request.Request(url, body, {"content-type": "application/json"})
with urllib.request.urlopen(request, context=context) as answer:
    print(json.load(answer)["message_id"])
"""


async def program(script: str | Path, *arguments: str) -> str:
    """What a Python program of somebody else prints; it knows nothing of ours, and must succeed."""
    given = ["-c", script] if isinstance(script, str) else [str(script)]
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-I", *given, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


async def save(person: Person, selector: str, path: Path) -> None:
    """Download what is behind a link."""
    async with person.page.expect_download() as download:
        await person.page.click(selector)
    await (await download.value).save_as(path)


async def follow(person: Person, message_id: str) -> str:
    """Open a message once the list shows it, and watch its page until it has an outcome; which."""
    link = f'a[href="/messages/{message_id}"]'
    while not await person.page.locator(link).count():
        await person.go("/messages")
    await person.press(link)
    ended = (
        "() => ['delivered', 'failed'].find((each) => each === document.querySelector('#status').innerText)"
    )
    return await (await person.page.wait_for_function(ended)).json_value()


async def route(admin: Person, channel: str, target: str) -> None:
    """Have the client's messages go elsewhere."""
    await admin.go("/admin/clients")
    await admin.press(f"#list >> text={CLIENT}")
    await admin.page.select_option("#channel", channel)
    await admin.page.fill("#target", target)
    await admin.press("#route button")
    assert "The route was changed." in await admin.text()


async def prepared(admin: Person, folder: Path) -> None:
    """A certificate is issued, with its client, and somebody may see that client's messages."""
    await admin.go("/admin/certificates")
    await admin.page.fill("#client_name", CLIENT)
    await admin.press("#issue button")
    for name in (f"{CLIENT}.crt", f"{CLIENT}.key", "ca.crt"):
        await save(admin, f'a[download="{name}"]', folder / name)
    await admin.go("/admin/users")
    await admin.page.fill("#email", "baker@example.com")
    await admin.page.fill("#password", PASSWORD)
    await admin.page.fill("#clients", CLIENT)
    await admin.press("#create button")
    assert "The account is there" in await admin.text()


async def proved(auditor: Person, message_id: str, folder: Path) -> str:
    """Its history is searched for, exported, and verified with what was downloaded beside it; the file."""
    await auditor.go("/audit")
    await auditor.page.fill("#subject", message_id)
    await auditor.press(".filters button")
    assert any("ResendRequested" in row for row in await auditor.rows())
    await auditor.press("#export button")
    await save(auditor, "#fetch", folder / "history.jsonl")
    await auditor.page.wait_for_selector("text=The file is whole")
    for name in ("verify.py", "digests.jsonl", "digests.pub"):
        await save(auditor, f'a[href="/audit/{name}"]', folder / name)
    given = ["history.jsonl", "--digests", "digests.jsonl", "--key", "digests.pub"]
    paths = [each if each.startswith("--") else str(folder / each) for each in given]
    assert (await program(folder / "verify.py", *paths)).startswith("right")
    return (folder / "history.jsonl").read_text()


async def test_from_a_certificate_to_a_proof(
    system: System, browser, admin: Person, auditor: Person, tmp_path: Path
) -> None:
    """Who has never seen the system does all of it from its pages; the shell of the machine is not needed."""
    await prepared(admin, tmp_path)
    gateway = f"https://localhost:{system.ports()['gateway_port']}/api/v1/messages"

    async def send() -> str:
        return await program(SEND, gateway, str(tmp_path), CLIENT, NUMBER)

    async with browsing.person(system, browser) as baker:
        await baker.signed_in("baker@example.com")
        assert await follow(baker, await send()) == "delivered"
        await route(admin, "simulated", "success=0,permanent=1")
        outcome = "delivered"
        while outcome == "delivered":
            # The worker hears of the route a moment later.
            message_id = await send()
            outcome = await follow(baker, message_id)
        assert "Last error" in await baker.page.inner_text("#live")
        assert "Attempt 1: failed" in await baker.page.inner_text(".timeline")
        await route(admin, "inbox", "")
        while outcome == "failed":
            await admin.go("/admin/messages?status=failed")
            await admin.press(f'a[href="/messages/{message_id}"]')
            await admin.page.fill("#resend-reason", WHY)
            await admin.press("#resend button")
            assert "It is on its way again." in await admin.text()
            outcome = await follow(admin, message_id)
        await baker.page.reload()
        assert await baker.page.inner_text("#status") == "delivered"
        assert WHY in await baker.page.inner_text(".timeline")
    assert WHY in await proved(auditor, message_id, tmp_path)
