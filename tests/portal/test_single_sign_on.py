"""Signing in at an identity provider, against a real one over TLS: who comes in, and every way nobody does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from broker.domain import users
from broker.events import codec
from broker.events.user_commands import UserCommands
from broker.services.portal import single_sign_on
from support.portals import Visitor, portal
from support.provider import CLIENT_ID, SECRET, OidcProvider

NO_TABLES = "mysql://nobody@127.0.0.1:1/none"
REDIRECT = "https://portal.example/login/oidc/callback"


@pytest.fixture
async def provider(pki) -> AsyncIterator[OidcProvider]:
    made = OidcProvider(REDIRECT)
    made.person["email"] = "a@example.com"
    async with made.serving(pki.server_context()):
        yield made


def settings(provider: OidcProvider, pki) -> dict:
    return {
        "oidc_issuer": provider.issuer,
        "oidc_client_id": CLIENT_ID,
        "oidc_client_secret": SECRET,
        "portal_oidc_redirect_url": REDIRECT,
        "oidc_ca_file": pki.ca,
    }


@pytest.fixture
async def visitor(world, pki, provider) -> AsyncIterator[Visitor]:
    async with portal(world, NO_TABLES, **settings(provider, pki)) as client:
        yield client


async def begun(visitor: Visitor, pki, target: str = "/login/oidc") -> str:
    """By the button to the provider; the address that it leads back to, without the host."""
    leads = await visitor.get(target)
    assert leads.status_code == 303, leads.text
    async with httpx.AsyncClient(verify=pki.client_context()) as client:
        back = (await client.get(leads.headers["location"])).headers["location"]
    parts = urlsplit(back)
    return f"{parts.path}?{parts.query}"


async def recorded(world) -> list:
    return [
        codec.decode(fields[b"t"].decode(), fields[b"d"])
        for _, fields in await world.redis.xrange(world.keys.access.events)
    ]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_signing_in_at_the_provider(world, pki, provider, host):
    """By a link on the login page, and then to the page where one was going; on record as any sign-in."""
    async with portal(world, NO_TABLES, portal_host=host, **settings(provider, pki)) as visitor:
        page = await visitor.get("/login?next=/profile")
        assert 'href="/login/oidc?next=%2Fprofile"' in page.text
        back = await begun(visitor, pki, "/login/oidc?next=%2Fprofile")
        answer = await visitor.get(back)
        assert (answer.status_code, answer.headers["location"]) == (303, "/profile")
        profile = await visitor.get("/profile")
        assert (profile.status_code, "a@example.com" in profile.text) == (200, True)
        # What the beginning left is gone, and only the session's cookie is there.
        assert {name.removeprefix("__Host-") for name in visitor.cookies} == {"broker"}
        assert ("__Host-broker" in visitor.cookies) == (host == "0.0.0.0")
    (event,) = await recorded(world)
    assert type(event).__name__ == "LoginSucceeded"


async def test_without_a_provider_there_is_no_button(world):
    """Nothing hints at it, and its addresses are not found."""
    async with portal(world, NO_TABLES) as visitor:
        assert "single sign-on" not in (await visitor.get("/login")).text
        for path in (single_sign_on.LOGIN, single_sign_on.CALLBACK):
            assert (await visitor.get(path)).status_code == 404


@pytest.mark.parametrize(
    ("person", "why"),
    [
        ({"email": "stranger@example.com"}, "vouched"),
        ({"email_verified": False}, "vouched"),
        ({"email": "\u212a@example.com"}, "vouched"),
    ],
)
async def test_nobody_else_comes_in(visitor, pki, provider, person, why):
    """Who has no account, or an address that is not proved: told on the login page, without a session."""
    provider.person |= person
    answer = await visitor.get(await begun(visitor, pki))
    assert (answer.status_code, answer.headers["location"]) == (303, f"/login?why={why}")
    assert "did not vouch" in (await visitor.get(f"/login?why={why}")).text
    assert (await visitor.get("/profile")).headers["location"].startswith("/login")


async def test_a_disabled_account_stays_out(world, visitor, pki):
    """Whatever the provider says."""
    commands = UserCommands(world.registry)
    user_id = await world.registry.read(f"email:{users.normalised_email('a@example.com')}", str)
    await commands.disable_user(user_id, None, actor="system")
    answer = await visitor.get(await begun(visitor, pki))
    assert answer.headers["location"] == "/login?why=vouched"


async def test_only_the_browser_that_began_can_end(visitor, pki):
    """Another's address, a state of nobody's, no code: the browser is not signed in, and told to begin again."""
    back = await begun(visitor, pki)
    async with httpx.AsyncClient(base_url=visitor.base_url) as other:
        assert (await other.get(back)).headers["location"] == "/login?why=begin"
        # Nor with its own beginning.
        await other.get("/login/oidc")
        assert (await other.get(back)).headers["location"] == "/login?why=begin"
        assert (await other.get("/profile")).headers["location"].startswith("/login")
    state = parse_qs(urlsplit(back).query)["state"][0]
    for query, why in (("", "begin"), ("state=x&code=y", "begin"), (f"state={state}", "vouched"),
                       (f"state={state}&error=access_denied", "denied")):  # fmt: skip
        answer = await visitor.get(f"/login/oidc/callback?{query}")
        assert answer.headers["location"] == f"/login?why={why}", query
    assert (await visitor.get(back)).headers["location"] == "/"


@pytest.mark.parametrize(
    "target", ["https://evil.example", "//evil.example", "/login", "javascript:alert(1)"]
)
async def test_signing_in_there_leads_nowhere_else(visitor, pki, target):
    """Only to a page of ours."""
    back = await begun(visitor, pki, str(httpx.URL("/login/oidc", params={"next": target})))
    assert (await visitor.get(back)).headers["location"] == "/"


async def test_a_provider_that_is_away_is_said(world, pki, provider):
    """On the login page, where the password works still."""
    there = settings(provider, pki) | {"oidc_issuer": "https://localhost:1"}
    async with portal(world, NO_TABLES, **there) as visitor:
        assert (await visitor.get("/login/oidc")).headers["location"] == "/login?why=provider"
        assert "cannot be used now" in (await visitor.get("/login?why=provider")).text
        await visitor.sign_in()
        assert (await visitor.get("/profile")).status_code == 200
