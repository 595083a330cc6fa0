"""Signing in at an identity provider in a real browser, which the provider is another site to."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from broker.embedded.valkey import free_port
from broker.services.portal.single_sign_on import CALLBACK
from support import browsing, looking
from support.browsing import PASSWORD, Person
from support.installation import listens
from support.provider import CLIENT_ID, SECRET, OidcProvider
from support.system import System
from support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="session")

WANTED = "/messages?status=delivered"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def provider(system: System, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[OidcProvider]:
    """A provider that people press a button at, and beside `system` a portal of its own that leads there."""
    await browsing.settled(system, "demo", 1, "delivered")
    port = free_port()
    made = OidcProvider(f"http://localhost:{port}{CALLBACK}")
    made.asks = True
    async with made.serving(None):
        environ = system.environ | {
            "BROKER_OIDC_ISSUER": made.issuer,
            "BROKER_OIDC_CLIENT_ID": CLIENT_ID,
            "BROKER_OIDC_CLIENT_SECRET": SECRET,
            "BROKER_PORTAL_OIDC_REDIRECT_URL": made.redirect_url,
            "BROKER_CERTS_DIR": str(system.certs),
        }
        said = tmp_path_factory.mktemp("single") / "portal.log"
        command = (sys.executable, "-m", "broker", "portal", "--data", str(system.data), "--port", str(port))
        with said.open("wb") as file, subprocess.Popen(command, env=environ, stderr=file) as portal:
            try:
                await wait_until(
                    lambda: portal.poll() is not None or listens(port), within=90, what="the portal"
                )
                assert portal.poll() is None, said.read_text()
                yield made
            finally:
                portal.terminate()


@pytest_asyncio.fixture(loop_scope="session")
async def visitor(system: System, browser: Browser, provider: OidcProvider) -> AsyncIterator[Person]:
    """Somebody with a fresh browser, led to the login page from the page they wanted, and on to the provider."""
    async with browsing.person(system, browser) as found:
        found.base = provider.redirect_url.removesuffix(CALLBACK)
        await found.go(WANTED)
        assert found.path.startswith("/login?next=")
        await found.press("#single")
        assert found.page.url.startswith(f"{provider.issuer}/authorize?")
        yield found


async def test_signing_in_at_the_provider(visitor):
    """A button on the login page, one at the provider: signed in, on the page first wanted, until signing out."""
    await visitor.press("text=Sign in")
    assert visitor.path == WANTED
    assert "reader@example.com" in await visitor.text()
    assert await visitor.rows()
    kept = {each["name"]: each for each in await visitor.page.context.cookies(visitor.base)}
    assert set(kept) == {"broker"}
    assert (kept["broker"]["httpOnly"], kept["broker"]["sameSite"]) == (True, "Lax")
    await visitor.press(".who button")
    assert visitor.path == "/login?why=out"
    await visitor.go("/profile")
    assert visitor.path == "/login?next=%2Fprofile"


async def test_who_cancels_there_is_told_and_goes_on_with_the_password(visitor):
    """The login page says what happened, in its own words; the password leads to the page first wanted."""
    await visitor.press("text=Cancel")
    assert visitor.path.startswith("/login?why=denied")
    said = await visitor.page.inner_text("[role=alert]")
    assert said.startswith("Nobody was signed in at the identity provider.")
    assert "cancelled" not in await visitor.text()
    await looking.accessible(visitor)
    await visitor.sign_in("reader@example.com", PASSWORD)
    assert visitor.path == WANTED


async def test_who_has_no_account_is_told_and_may_be_somebody_else(visitor, provider):
    """Whom nobody here knows stays out; the same browser comes in as somebody who has an account."""
    known = provider.person
    provider.person = known | {"sub": "s-2", "email": "stranger@example.com"}
    try:
        await visitor.press("text=Sign in")
    finally:
        provider.person = known
    assert visitor.path.startswith("/login?why=vouched")
    assert "did not vouch for anybody who may sign in here" in await visitor.page.inner_text("[role=alert]")
    await visitor.press("#single")
    await visitor.press("text=Sign in")
    assert visitor.path == WANTED
