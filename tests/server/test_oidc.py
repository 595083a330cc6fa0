"""Single sign-on against a real provider over TLS: who comes in, and every way in which nobody does."""

from __future__ import annotations

import asyncio
import base64
import hmac
import time
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

import httpx
import msgspec
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from broker import clock
from broker.errors import SettingsError
from broker.events import codec, sign_in
from broker.events.user_commands import UserCommands
from broker.services.server import oidc
from broker.settings import load, shown
from broker.web import oidc_provider
from broker.web.oidc import LASTS_SECONDS
from support.calling import Caller
from support.provider import CLIENT_ID, SECRET, OidcProvider
from support.serving import Answered
from support.waiting import wait_until

REDIRECT = "https://broker.example/portal/auth/oidc/callback"
REFUSED = "The identity provider did not vouch for anybody who may sign in here."
EMAIL = "reader@example.com"


@pytest.fixture
async def provider(pki) -> AsyncIterator[OidcProvider]:
    made = OidcProvider(REDIRECT)
    async with made.serving(pki.server_context()):
        yield made


class Browser:
    """Goes from server to provider and back; keeps the one cookie."""

    def __init__(self, world, server) -> None:
        self.caller = Caller(server.port, world.pki.client_context())
        self._context = world.pki.client_context()
        self.cookie = ""

    async def begin(self) -> str:
        """To the provider; the address that it leads back to."""
        leads = await self.caller.get(oidc.LOGIN)
        assert leads.status == 303, leads.body
        self.cookie, *attributes = leads.headers["set-cookie"].split("; ")
        assert {"HttpOnly", "Secure", "SameSite=lax", "Path=/"} <= set(attributes)
        async with httpx.AsyncClient(verify=self._context) as client:
            back = await client.get(leads.headers["location"])
        assert back.status_code == 302, back.text
        return back.headers["location"]

    async def end(self, address: str) -> Answered:
        parts = urlsplit(address)
        headers = {"cookie": self.cookie} if self.cookie else {}
        return await self.caller.get(f"{parts.path}?{parts.query}", headers=headers)

    async def sign_in(self) -> Answered:
        return await self.end(await self.begin())


@pytest.fixture
def settings(world, pki, provider):
    return msgspec.structs.replace(
        world.settings,
        oidc_issuer=provider.issuer,
        oidc_client_id=CLIENT_ID,
        oidc_client_secret=SECRET,
        oidc_redirect_url=REDIRECT,
        oidc_ca_file=pki.ca,
    )


@pytest.fixture
async def server(world, settings):
    async with world.server(settings=settings) as running:
        yield running


@pytest.fixture
async def reader(world):
    users = UserCommands(world.registry)
    return (await users.create_user(EMAIL, "a good password", "user", ["demo"], actor="system")).value


@pytest.fixture
def browser(world, server, reader) -> Browser:
    return Browser(world, server)


async def events(world) -> list:
    return [
        codec.decode(fields[b"t"].decode(), fields[b"d"])
        for _, fields in await world.redis.xrange(world.keys.access.events)
    ]


def is_refused(answer: Answered) -> bool:
    """The one 401 that all refusals of a person give."""
    return (answer.status, answer.json["error"], answer.json["detail"]) == (401, "unauthorized", REFUSED)


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
async def test_signing_in_at_the_provider(world, provider, browser, reader, method):
    """The pair of tokens that a password gives, which works; on record; the cookie has done its duty."""
    provider.methods = [method]
    provider.person["email"] = "Reader@Example.com"
    answer = await browser.sign_in()
    assert answer.status == 200, answer.body
    assert answer.headers["cache-control"] == "no-store"
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert answer.json.keys() == {"access_token", "refresh_token", "token_type", "expires_in", "user"}
    assert answer.json["user"]["user_id"] == reader.user_id
    bearer = {"authorization": f"Bearer {answer.json['access_token']}"}
    assert (await browser.caller.get("/portal/profile", headers=bearer)).json["email"] == EMAIL
    next_pair = await browser.caller.post(
        "/portal/auth/refresh", {"refresh_token": answer.json["refresh_token"]}
    )
    assert next_pair.status == 200
    (event,) = await events(world)
    assert (type(event).__name__, event.user_id, event.address) == (
        "LoginSucceeded", reader.user_id, "127.0.0.1",
    )  # fmt: skip


def elsewhere(now: int) -> dict[str, dict]:
    """Claims that do not let in, by what is wrong with them."""
    return {
        "another nonce": {"nonce": "n" * 43},
        "no nonce": {"nonce": None},
        "another audience": {"aud": "another client"},
        "no audience": {"aud": None},
        "an audience of two without a party": {"aud": [CLIENT_ID, "another client"]},
        "another party": {"aud": [CLIENT_ID, "another client"], "azp": "another client"},
        "another issuer": {"iss": "https://localhost:1"},
        "expired": {"iat": now - 7200, "exp": now - 3600},
        "no end": {"exp": None},
        "of the future": {"iat": now + 3600, "exp": now + 7200},
        "not yet": {"nbf": now + 3600},
        "an unverified address": {"email_verified": False},
        "verified, as a text": {"email_verified": "true"},
        "verified, perhaps": {"email_verified": None},
        "no address": {"email": None},
        "an address that is none": {"email": ["reader@example.com"]},
        "nobody": {"sub": None},
        "another access token": {"at_hash": "AAAAAAAAAAAAAAAAAAAAAA"},
        "an unknown address": {"email": "stranger@example.com"},
    }


async def test_no_other_identity_comes_in(world, provider, browser):
    """Each claim is checked: 401 with the same words, no session, and counted as failed."""
    cases = elsewhere(int(time.time()))
    for what, changes in cases.items():
        provider.changes = changes
        assert is_refused(await browser.sign_in()), what
    provider.changes = {}
    assert (await browser.sign_in()).status == 200

    async def counted() -> bool:
        failed = [event for event in await events(world) if type(event).__name__ == "LoginFailed"]
        return sum(event.count for event in failed) == len(cases)

    await wait_until(counted)
    assert [type(event).__name__ for event in await events(world)].count("LoginSucceeded") == 1


def part(value) -> str:
    raw = value if isinstance(value, bytes) else msgspec.json.encode(value)
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


async def test_no_forged_token_comes_in(provider, browser):
    """`none`, secrets as keys, another's key under the same name, a key brought along, rubbish: all refused."""
    stranger = ECKey.generate_key("P-256", {"kid": "k-1"})

    def hmac_with(secret: bytes):
        def forge(header: dict, claims: dict) -> str:
            content = f"{part(header | {'alg': 'HS256'})}.{part(claims)}"
            return f"{content}.{part(hmac.digest(secret, content.encode(), 'sha256'))}"

        return forge

    def brought(header: dict, claims: dict) -> str:
        return jwt.encode(header | {"jwk": stranger.as_dict(private=False)}, claims, stranger)

    forgers = {
        "none": lambda header, claims: f"{part(header | {'alg': 'none'})}.{part(claims)}.",
        "no signature": lambda header, claims: f"{part(header)}.{part(claims)}.",
        "the client's secret": hmac_with(SECRET.encode()),
        "the public key": hmac_with(provider.key.as_pem(private=False)),
        "another key": lambda header, claims: jwt.encode(header, claims, stranger),
        "a key brought along": brought,
        "an unknown key": lambda header, claims: jwt.encode(header | {"kid": "k-2"}, claims, stranger),
        "a list as key": lambda header, claims: f"{part(header | {'kid': ['k-1']})}.{part(claims)}.AAAA",
        "no token": lambda _header, _claims: "rubbish",
        "no claims": lambda header, _claims: f"{part(header)}.{part([])}.AAAA",
        "deep": lambda _header, _claims: f"{part(b'[' * 5000)}.x.y",
    }
    for what, forge in forgers.items():
        provider.forge = forge
        assert is_refused(await browser.sign_in()), what
    provider.forge = None
    assert (await browser.sign_in()).status == 200


async def test_a_disabled_user_stays_out(world, browser, reader):
    """The provider does not know that we disabled them."""
    await UserCommands(world.registry).create_user(
        "a@example.com", "a good password", "admin", actor="system"
    )
    await UserCommands(world.registry).disable_user(reader.user_id, actor="system")
    assert is_refused(await browser.sign_in())


async def test_an_address_that_only_looks_like_it(world, provider, browser):
    """`K` (the Kelvin sign) is `k` in lower case, and so another's address; capitals are the same one's."""
    users = UserCommands(world.registry)
    await users.create_user("kate@example.com", "a good password", "user", actor="system")
    provider.person["email"] = "\u212aate@example.com"
    assert is_refused(await browser.sign_in())
    provider.person["email"] = "KATE@example.com"
    assert (await browser.sign_in()).status == 200


async def test_only_the_browser_that_began_can_end(world, server, browser, monkeypatch):
    """Another state, none, no cookie, another browser's, a changed one, one too old: 400 by name, and no request."""
    address = await browser.begin()
    own, state = browser.cookie, parse_qs(urlsplit(address).query)["state"][0]
    other = Browser(world, server)
    theirs = await other.begin()

    async def refused(cookie: str, where: str) -> bool:
        browser.cookie = cookie
        answer = await browser.end(where)
        details = answer.json["details"]
        return (answer.status, [each["field"] for each in details]) == (400, ["state"])

    name, _, sealed = own.partition("=")
    middle = len(sealed) // 2
    changed = f"{sealed[:middle]}{'A' if sealed[middle] != 'A' else 'B'}{sealed[middle + 1 :]}"
    assert await refused(own, address.replace(state, "s" * 43))
    assert await refused(own, address.replace(f"state={state}", "x=1"))
    assert await refused(own, theirs)
    assert await refused("", address)
    assert await refused(other.cookie, address)
    for bad in (changed, "", "x", "%00", "é"):
        assert await refused(f"{name}={bad}", address)
    with monkeypatch.context() as later:
        moved = clock.now_ms() + LASTS_SECONDS * 1000 + 1
        later.setattr(clock, "now_ms", lambda: moved)
        assert await refused(own, address)
    browser.cookie = own
    assert (await browser.end(address)).status == 200


async def test_a_code_works_once_and_for_its_own_flow(world, server, browser):
    """Played back, or slipped into another browser's flow (PKCE): the provider refuses the exchange, and we the login."""
    address = await browser.begin()
    assert (await browser.end(address)).status == 200
    assert is_refused(await browser.end(address))
    victim = Browser(world, server)
    own = parse_qs(urlsplit(await victim.begin()).query)
    stolen = parse_qs(urlsplit(await browser.begin()).query)
    query = f"code={stolen['code'][0]}&state={own['state'][0]}&iss={own['iss'][0]}"
    assert is_refused(await victim.end(f"{REDIRECT}?{query}"))


async def test_another_providers_answer(provider, browser):
    """`iss` must be ours (RFC 9207), and may not be missing where the provider says that it sends it."""
    for change in ("https://localhost:1", None):
        address = await browser.begin()
        parts = parse_qs(urlsplit(address).query)
        query = f"code={parts['code'][0]}&state={parts['state'][0]}" + (f"&iss={change}" if change else "")
        assert is_refused(await browser.end(f"{REDIRECT}?{query}"))


async def test_one_address_cannot_take_all_the_places(world, server, provider, reader):
    """While the provider is slow so many wait from one address; the next are told to come later, all others go on."""
    browsers = [Browser(world, server) for _ in range(sign_in.MAX_WAITING_OF_ONE + 2)]
    addresses = [await each.begin() for each in browsers]
    provider.answers.clear()
    ends = [asyncio.create_task(b.end(a)) for b, a in zip(browsers, addresses, strict=True)]
    await wait_until(lambda: sum(each.done() for each in ends) == 2)
    early = [each.result() for each in ends if each.done()]
    assert {(each.status, each.json["error"]) for each in early} == {(429, "rate_limit_exceeded")}
    by_password = {"email": EMAIL, "password": "a good password"}
    assert (await browsers[0].caller.post("/portal/auth/login", by_password)).status == 200
    provider.answers.set()
    found = sorted(each.status for each in await asyncio.gather(*ends))
    assert found == [200] * sign_in.MAX_WAITING_OF_ONE + [429] * 2


@pytest.mark.parametrize("query", ["error=access_denied", "error=%3Cscript%3E&error_description=x"])
async def test_the_provider_may_say_no(provider, browser, query):
    """401; what the address says of it is not repeated."""
    parts = parse_qs(urlsplit(await browser.begin()).query)
    answer = await browser.end(f"{REDIRECT}?state={parts['state'][0]}&iss={provider.issuer}&{query}")
    assert is_refused(answer)
    assert b"script" not in answer.body


@pytest.mark.parametrize("query", ["", "code=", f"code={'x' * 3000}"])
async def test_a_code_must_be_one(provider, browser, query):
    parts = parse_qs(urlsplit(await browser.begin()).query)
    answer = await browser.end(f"{REDIRECT}?state={parts['state'][0]}&iss={provider.issuer}&{query}")
    assert (answer.status, answer.json["details"][0]["field"]) == (400, "code")


async def test_new_keys_of_the_provider_are_fetched(provider, browser, monkeypatch):
    """A key that is not known is asked for, though not at the rate of whoever names unknown ones."""
    assert (await browser.sign_in()).status == 200
    provider.rotate("k-2")
    assert is_refused(await browser.sign_in())
    monkeypatch.setattr(oidc_provider, "REFETCH_SECONDS", 0.0)
    assert (await browser.sign_in()).status == 200


@pytest.mark.parametrize(
    "described",
    [
        {"issuer": "https://localhost:1"}, {"token_endpoint": "http://localhost/token"},
        {"jwks_uri": "http://example.com/keys"}, {"authorization_endpoint": "javascript:alert(1)"},
        {"jwks_uri": "https://["},
        {"token_endpoint": None}, {"filler": "x" * 300_000},
    ],
    ids=",".join,
)  # fmt: skip
async def test_a_provider_that_is_not_what_it_should_be(provider, browser, described):
    """Another's description, one that would send secrets in the clear, or without end: 503, and nobody is sent there."""
    provider.described = described
    answer = await browser.caller.get(oidc.LOGIN)
    assert (answer.status, answer.json["error"]) == (503, "identity_provider_unavailable")
    for _ in range(5):
        assert (await browser.caller.get(oidc.LOGIN)).status == 503
    assert provider.asked == 1, "it is not asked at the rate of whoever comes"
    provider.described = {}

    async def mended() -> bool:
        return (await browser.caller.get(oidc.LOGIN)).status == 303

    await wait_until(mended)
    assert (await browser.sign_in()).status == 200


async def test_the_provider_is_away(world, pki, settings, reader):
    """503 while nothing answers there; signing in by password goes on."""
    gone = OidcProvider(REDIRECT)
    async with gone.serving(pki.server_context()):
        issuer = gone.issuer
    settings = msgspec.structs.replace(settings, oidc_issuer=issuer)
    async with world.server(settings=settings) as server:
        caller = Caller(server.port, pki.client_context())
        for path in (oidc.LOGIN, f"{oidc.LOGIN}?x=1"):
            answer = await caller.get(path)
            assert (answer.status, answer.json["error"]) == (503, "identity_provider_unavailable")
        by_password = await caller.post("/portal/auth/login", {"email": EMAIL, "password": "a good password"})
        assert by_password.status == 200


async def test_a_provider_with_another_certificate_is_not_asked(world, provider, settings):
    """Without its CA among those believed nothing is sent to it."""
    async with world.server(settings=msgspec.structs.replace(settings, oidc_ca_file=None)) as server:
        answer = await Caller(server.port, world.pki.client_context()).get(oidc.LOGIN)
    assert (answer.status, answer.json["error"]) == (503, "identity_provider_unavailable")


async def test_without_settings_there_is_none(world):
    """404 on both."""
    async with world.server() as server:
        caller = Caller(server.port, world.pki.client_context())
        for path in (oidc.LOGIN, oidc.CALLBACK):
            assert (await caller.get(path)).json["error"] == "not_found"


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"ISSUER": "https://id.example"}, "oidc_client_id"),
        ({"ISSUER": "http://id.example", "CLIENT_ID": "x"}, "oidc_issuer"),
        ({"ISSUER": "http://localhost.example", "CLIENT_ID": "x"}, "oidc_issuer"),
        ({"ISSUER": "https://id.example/?x=1", "CLIENT_ID": "x"}, "oidc_issuer"),
        ({"ISSUER": "https://user@id.example", "CLIENT_ID": "x"}, "oidc_issuer"),
        ({"REDIRECT_URL": "http://id.example"}, "oidc_redirect_url"),
    ],
)
def test_settings_that_cannot_be(variables, name):
    """The start stops with the name."""
    with pytest.raises(SettingsError, match=name):
        load(environ={f"BROKER_OIDC_{key}": value for key, value in variables.items()})


def test_the_secret_is_not_shown():
    """Neither among the effective settings nor in the error about it."""
    given = {"BROKER_OIDC_CLIENT_SECRET": SECRET, "BROKER_OIDC_ISSUER": "http://[::1]:8/realm"}
    settings = load(environ=given | {"BROKER_OIDC_CLIENT_ID": "x"})
    assert settings.oidc_client_secret == SECRET
    assert SECRET not in repr(shown(settings))
    with pytest.raises(SettingsError) as told:
        load(environ={"BROKER_OIDC_CLIENT_SECRET": SECRET * 200})
    assert SECRET not in str(told.value)
