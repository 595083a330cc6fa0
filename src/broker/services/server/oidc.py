"""Single sign-on over the API: a login at the provider, answered as one by password is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.errors import NotFound
from broker.events import sealed_text
from broker.events.keyring import Keyring
from broker.events.login_throttle import Throttled
from broker.events.sessions import Session
from broker.events.sign_in import Places, SignIn, SignInRefused
from broker.services.server import exchange, portal_wire
from broker.settings import Settings
from broker.web import oidc, peer
from broker.web.oidc import CodeFlow
from broker.web.oidc_provider import IdentityRefused, Provider
from broker.web.openapi import Operation
from broker.web.parameters import parameter
from broker.web.problems import Problem

LOGIN: Final = "/portal/auth/oidc/login"
CALLBACK: Final = "/portal/auth/oidc/callback"
COOKIE: Final = "__Host-broker-oidc"
_AAD: Final = b"broker oidc flow 1"


class SingleSignOn:
    """The endpoints. `provider` is None where single sign-on is not set up: then they are not found."""

    def __init__(
        self,
        provider: Provider | None,
        sign_in: SignIn,
        keyring: Keyring,
        pair: Callable[[Session], portal_wire.TokenPair],
    ) -> None:
        self._flow: CodeFlow | None = None
        if provider is not None:
            seal = partial(sealed_text.seal, keyring, purpose=_AAD)
            unseal = partial(sealed_text.unseal, keyring, purpose=_AAD)
            self._flow = CodeFlow(provider, seal, unseal, cookie=COOKIE)
        self._sign_in = sign_in
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
        flow = self._set_up()
        with self._place(request):
            return await flow.begin()

    async def callback(self, request: Request) -> Response:
        """The pair of tokens for whom the provider vouches for."""
        flow = self._set_up()
        try:
            with self._place(request):
                session, _ = await flow.end(request, self._sign_in)
        except (IdentityRefused, SignInRefused):
            # The same words, whether the provider, the account or the answer is to blame.
            raise Problem("unauthorized", IdentityRefused().message) from None
        response = exchange.answer(self._pair(session))
        flow.forget(response)
        return response

    @contextmanager
    def _place(self, request: Request) -> Iterator[None]:
        """So that nobody holds up the others where the provider is slow. Raises Problem 429."""
        try:
            with self._places.taken(peer.address(request.scope)):
                yield
        except Throttled as error:
            raise exchange.later(error) from None

    def _set_up(self) -> CodeFlow:
        if self._flow is None:
            raise NotFound("Single sign-on is not set up.")
        return self._flow


def provider(settings: Settings) -> Provider | None:
    """The provider of the settings, if any. Raises SettingsError."""
    default = f"https://localhost:{settings.server_port}{CALLBACK}"
    return oidc.provider(settings, settings.oidc_redirect_url or default)


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
