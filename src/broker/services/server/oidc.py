"""Single sign-on: GET /portal/auth/oidc/login, and its callback, which answers as a login by password does.

Authorization code flow with PKCE. What the callback must know of the beginning (state, nonce, verifier) is
sealed in a cookie: no server keeps it, each can finish what another began, and no other browser can.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from broker import clock
from broker.errors import NotFound, ValidationError
from broker.events import sealed_text
from broker.events.keyring import Keyring
from broker.events.login_throttle import Throttled
from broker.events.sessions import Session
from broker.events.sign_in import Places, SignIn, SignInRefused
from broker.services.server import exchange, portal_wire
from broker.services.server.oidc_provider import IdentityRefused, Provider
from broker.settings import Settings
from broker.web import peer, tls
from broker.web.openapi import Operation
from broker.web.parameters import parameter
from broker.web.problems import Problem

LOGIN: Final = "/portal/auth/oidc/login"
CALLBACK: Final = "/portal/auth/oidc/callback"
COOKIE: Final = "__Host-broker-oidc"
LASTS_SECONDS: Final = 600
"""How long somebody may take at the provider."""
_MAX_CODE: Final = 2048
_AAD: Final = b"broker oidc flow 1"


class _Flow(msgspec.Struct, frozen=True, array_like=True):
    state: str
    nonce: str
    verifier: str
    ends_at_ms: int

    def __repr__(self) -> str:
        return "<Flow>"


class SingleSignOn:
    """The endpoints. `provider` is None where single sign-on is not set up: then they are not found."""

    def __init__(
        self,
        provider: Provider | None,
        sign_in: SignIn,
        keyring: Keyring,
        pair: Callable[[Session], portal_wire.TokenPair],
    ) -> None:
        self._provider = provider
        self._sign_in = sign_in
        self._keyring = keyring
        self._pair = pair
        self._places = Places()

    def routes(self) -> list[Route]:
        """Both."""
        return [
            Route(LOGIN, self.login, methods=["GET"]),
            Route(CALLBACK, self.callback, methods=["GET"]),
        ]

    async def login(self, request: Request) -> Response:
        """Send the browser to the provider."""
        provider = self._set_up()
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        with self._place(request):
            address = await provider.address(state=state, nonce=nonce, verifier=verifier)
        response = RedirectResponse(address, 303, exchange.UNKEPT)
        ends = clock.now_ms() + LASTS_SECONDS * 1000
        _set(response, self._seal(_Flow(state, nonce, verifier, ends)), LASTS_SECONDS)
        return response

    async def callback(self, request: Request) -> Response:
        """The pair of tokens for whom the provider vouches for."""
        provider = self._set_up()
        try:
            with self._place(request):
                session = await self._finish(provider, request)
        except (IdentityRefused, SignInRefused):
            # The same words, whether the provider, the account or the answer is to blame.
            raise Problem("unauthorized", IdentityRefused().message) from None
        response = exchange.answer(self._pair(session))
        _set(response, "", 0)
        return response

    async def _finish(self, provider: Provider, request: Request) -> Session:
        address = peer.address(request.scope)
        try:
            flow = self._begun(request)
            await provider.check_issuer(request.query_params.get("iss"))
            if request.query_params.get("error") is not None:
                raise IdentityRefused
            code = request.query_params.get("code", "")
            if not 0 < len(code) <= _MAX_CODE:
                raise ValidationError("code", "is missing, or longer than any code")
            email = await provider.email(code, nonce=flow.nonce, verifier=flow.verifier)
        except (IdentityRefused, ValidationError):
            # Whose account was meant is not known, or not proved.
            self._sign_in.failed("", address)
            raise
        return await self._sign_in.vouched(email, address)

    def _begun(self, request: Request) -> _Flow:
        """What this browser began. Raises ValidationError."""
        flow = self._unseal(request.cookies.get(COOKIE, ""))
        given = request.query_params.get("state", "")
        if (
            flow is None
            or clock.now_ms() >= flow.ends_at_ms
            or not secrets.compare_digest(given.encode("utf-8", "surrogatepass"), flow.state.encode())
        ):
            raise ValidationError("state", f"is not that of a sign-in begun here; begin again at {LOGIN}")
        return flow

    @contextmanager
    def _place(self, request: Request) -> Iterator[None]:
        """So that nobody holds up the others where the provider is slow. Raises Problem 429."""
        try:
            with self._places.taken(peer.address(request.scope)):
                yield
        except Throttled as error:
            raise exchange.later(error) from None

    def _set_up(self) -> Provider:
        if self._provider is None:
            raise NotFound("Single sign-on is not set up.")
        return self._provider

    def _seal(self, flow: _Flow) -> str:
        return sealed_text.seal(self._keyring, msgspec.msgpack.encode(flow), _AAD)

    def _unseal(self, cookie: str) -> _Flow | None:
        content = sealed_text.unseal(self._keyring, cookie, _AAD)
        try:
            return None if content is None else msgspec.msgpack.decode(content, type=_Flow)
        except msgspec.MsgspecError:
            return None


def provider(settings: Settings) -> Provider | None:
    """The provider of the settings, if any. Raises SettingsError."""
    if settings.oidc_issuer is None:
        return None
    default = f"https://localhost:{settings.server_port}{CALLBACK}"
    return Provider(
        settings.oidc_issuer,
        settings.oidc_client_id or "",
        settings.oidc_client_secret,
        settings.oidc_redirect_url or default,
        tls.public_context(settings.oidc_ca_file, "oidc_ca_file"),
    )


def _set(response: Response, value: str, seconds: int) -> None:
    # `lax`: the provider sends the browser back from another site, by a link and not by a form.
    response.set_cookie(COOKIE, value, max_age=seconds, path="/", secure=True, httponly=True, samesite="lax")


OPERATIONS: Final = [
    Operation(
        method="get",
        path=LOGIN,
        summary="Sign in at the identity provider: leads the browser there.",
        answers={303: None},
        errors=(404, 503),
        also=("identity_provider_unavailable",),
        certificate=False,
    ),
    Operation(
        method="get",
        path=CALLBACK,
        summary="Where the identity provider leads the browser back to.",
        answers={200: portal_wire.TokenPair},
        errors=(400, 401, 404, 503),
        also=("identity_provider_unavailable",),
        parameters=[
            parameter("state", "As it was given to the provider."),
            parameter("code", "What the provider exchanges for an ID token, once."),
            parameter("iss", "Which provider answers (RFC 9207)."),
            parameter("error", "Instead of a code."),
        ],
        certificate=False,
    ),
]
