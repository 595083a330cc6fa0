"""Clients in the portal: registered, sent elsewhere, and what is said where that cannot be."""

from __future__ import annotations

import re

import pytest
import pytest_asyncio

from broker.domain import clients
from broker.domain.clients import ClientEntry
from broker.events.sealing import ClientKeys, Sealer
from broker.preparation import opened
from support import looking
from support.browsing import register
from support.system import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_client_is_registered(admin):
    """With a name that is one; a second of the name, or a wrong one, is said beside the form, which is kept."""
    await admin.go("/admin/clients")
    for name, domain, said in (
        ("Not A Name", "a.example", "#client_id-wrong"),
        ("demo", "b.example", ".notice.bad"),
    ):
        await admin.page.fill("#client_id", name)
        await admin.page.fill("#domain", domain)
        await admin.press("#register button")
        assert await admin.page.locator(said).count() == 1
        assert await admin.page.input_value("#domain") == domain
    await admin.page.fill("#client_id", "routed")
    await admin.page.fill("#domain", "<script>window.hurt=1</script>{{ 7*7 }} مرحبا 🎉")
    await admin.press("#register button")
    assert admin.path.startswith("/admin/clients/routed")
    assert "<script>window.hurt=1</script>{{ 7*7 }}" in await admin.text()
    await admin.go("/admin/clients?search=oute")
    assert len(await admin.rows()) == 1
    assert await admin.page.evaluate("window.hurt") is None


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def mover(system) -> str:
    """The page of a client of this module's own."""
    async with opened(system.settings) as tools:
        await tools.clients.register_client("mover", None, actor="system")
    await eventually(lambda: system.query("SELECT 1 FROM clients WHERE client_id='mover'"), within=20)
    return "/admin/clients/mover"


async def change(admin, channel: str, target: str, signing: str | None = None, secret: str = "") -> None:
    """Fill in the route's form, and send it."""
    await admin.page.select_option("#channel", channel)
    await admin.page.fill("#target", target)
    if signing:
        await admin.page.check(f"input[value={signing}]")
    await admin.page.fill("#secret", secret)
    await admin.press("#route button")


WRONG = (
    ("webhook", "", "", "target"),
    ("webhook", "https://user:word@shop.example/", "", "target"),
    ("webhook", '"><script>window.hurt=1</script>', "", "target"),
    ("webhook", "https://shop.example/hook", "whsec_!", "secret"),
    ("simulated", "success=2", "", "target"),
    ("inbox", "somewhere", "", "target"),
)


async def test_a_wrong_route_is_said_beside_its_field(admin, mover):
    """What was given stays, but for the secret; nothing has changed."""
    await admin.go(mover)
    for channel, target, secret, field in WRONG:
        await change(admin, channel, target, "given" if secret else "new", secret)
        assert await admin.page.locator(f"#{field}-wrong").count() == 1, (channel, target)
        assert await admin.page.input_value("#target") == target
        assert await admin.page.input_value("#secret") == ""
        assert await admin.page.evaluate("window.hurt") is None
        assert await admin.page.inner_text("#channel-now") == "inbox (the default)"


async def test_messages_are_sent_elsewhere(admin, mover):
    """From the next message on; the history has who did it."""
    await admin.go(mover)
    await change(admin, "simulated", "success=0,permanent=1")
    assert "The route was changed." in await admin.text()
    assert await admin.page.inner_text("#target-now") == "success=0,permanent=1"
    # The worker hears of it a moment later.
    while not admin.system.query("SELECT 1 FROM messages WHERE client_id='mover' AND status='failed'"):
        message_id = await register(admin.system, "mover")

        def ended(message_id: str = message_id) -> bool:
            found = admin.system.query("SELECT status FROM messages WHERE message_id=%s", message_id)
            return bool(found) and found[0]["status"] != "queued"

        await eventually(ended)

    def recorded() -> list:
        return admin.system.query(
            "SELECT actor FROM audit_log WHERE type='ClientRouteChanged' AND subject='client:mover'"
        )

    found = await eventually(recorded, within=20)
    assert found[0]["actor"].startswith("user:")


async def test_a_webhooks_secret_is_shown_once_and_can_stay(admin, mover, pictures):
    """One is made unless another is given; a changed address need not change it. Events hold it sealed."""
    await admin.go(mover)
    await change(admin, "webhook", "https://shop.example/hook", "new")
    shown = await admin.page.inner_text("#secret")
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", shown)
    await looking.fits(admin, pictures, "boss-client-routed")
    await looking.accessible(admin)
    sealed = await entry(admin.system)
    await admin.go(mover)
    assert shown not in await admin.page.content()
    assert await admin.page.inner_text("#channel-now") == "webhook"
    await change(admin, "webhook", "https://shop.example/other", "keep")
    assert "The route was changed." in await admin.text()
    assert await admin.page.inner_text("#target-now") == "https://shop.example/other"
    assert await entry(admin.system) == sealed == clients.signing_secret(shown)
    await change(admin, "webhook", "https://shop.example/other", "given", "a secret of their own")
    assert await entry(admin.system) == b"a secret of their own"


async def entry(system) -> bytes:
    """The signing secret that the registry has for `mover`."""
    async with opened(system.settings) as tools:
        known = await tools.registry.read("client:mover", ClientEntry)
        keys = ClientKeys.unwrap("mover", await tools.registry.client_keys("mover"), tools.keyring)
    return Sealer(tools.keyring, lambda _: keys).unseal_secret("mover", known.sealed_secret)
