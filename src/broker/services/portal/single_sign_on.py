"""Signing in at an identity provider, which ends in a session as a password does."""

from __future__ import annotations

from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.errors import NotFound, ValidationError
from broker.events import sealed_text
from broker.events.keyring import Keyring
from broker.events.login_throttle import Throttled
from broker.events.sign_in import Places, SignInRefused
from broker.services.portal import faults, pages
from broker.services.portal.parts import Parts
from broker.settings import Settings
from broker.web import oidc, peer
from broker.web.oidc import CodeFlow
from broker.web.oidc_provider import IdentityRefused, Provider, ProviderUnavailable

LOGIN: Final = "/login/oidc"
CALLBACK: Final = "/login/oidc/callback"
_PURPOSE: Final = b"broker portal oidc flow 1"
_DENIED: Final = "access_denied"
"""What a provider says of somebody who did not sign in there, or may not (RFC 6749, 4.1.2.1)."""


def provider(settings: Settings) -> Provider | None:
    """The provider of the settings, if any, which leads back to the portal. Raises SettingsError."""
    scheme = "http" if settings.portal_plain else "https"
    default = f"{scheme}://localhost:{settings.portal_port}{CALLBACK}"
    return oidc.provider(settings, settings.portal_oidc_redirect_url or default)


class SingleSignOn:
    """The endpoints; without a provider they are not found."""

    def __init__(self, parts: Parts, found: Provider | None, *, secure: bool) -> None:
        self._gate = parts.gate
        self._sign_in = parts.accounts.sign_in
        self._flow = None if found is None else _flow(found, parts.keyring, secure=secure)
        self._places = Places()

    def routes(self) -> list[Route]:
        """Both."""
        return [
            Route(LOGIN, self.begin, methods=["GET"]),
            Route(CALLBACK, self.end, methods=["GET"]),
        ]

    async def begin(self, request: Request) -> Response:
        """Send the browser to the provider."""
        flow = self._set_up()
        target = faults.local(request.query_params.get("next", "/"))
        try:
            with self._places.taken(peer.address(request.scope)):
                return await flow.begin(target)
        except ProviderUnavailable:
            return _back("provider", target)
        except Throttled:
            return _back("busy", target)

    async def end(self, request: Request) -> Response:
        """Let in whom the provider vouches for; everybody else is told on the login page why not.

        From there, too, they go on to where they were going.
        """
        flow = self._set_up()
        target = faults.local(flow.target(request))
        try:
            with self._places.taken(peer.address(request.scope)):
                session, target = await flow.end(request, self._sign_in)
        except ValidationError:
            return _back("begin", target)
        except (IdentityRefused, SignInRefused):
            return _back("denied" if request.query_params.get("error") == _DENIED else "vouched", target)
        except ProviderUnavailable:
            return _back("provider", target)
        except Throttled:
            return _back("busy", target)
        self._gate.let_in(request, session)
        response = pages.see(faults.local(target))
        flow.forget(response)
        return response

    def _set_up(self) -> CodeFlow:
        if self._flow is None:
            raise NotFound("Single sign-on is not set up.")
        return self._flow


def _flow(found: Provider, keyring: Keyring, *, secure: bool) -> CodeFlow:
    return CodeFlow(
        found,
        partial(sealed_text.seal, keyring, purpose=_PURPOSE),
        partial(sealed_text.unseal, keyring, purpose=_PURPOSE),
        cookie="__Host-broker-single" if secure else "broker-single",
        secure=secure,
    )


def _back(why: str, target: str) -> Response:
    return pages.see(pages.query(faults.LOGIN, {"why": why, "next": None if target == "/" else target}))
