"""Single sign-on by the authorization code flow with PKCE, for every surface that people sign in at.

What the end must know of the beginning (state, nonce, verifier) is sealed in a cookie: no process keeps it,
each can finish what another began, and no other browser can.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from broker import clock
from broker.errors import ValidationError
from broker.settings import Settings
from broker.web import peer, tls
from broker.web.oidc_provider import IdentityRefused, Provider

LASTS_SECONDS: Final = 600
"""How long somebody may take at the provider."""
_MAX_CODE: Final = 2048


T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Accounts(Protocol[T_co]):
    """Who is let in: a session for whom the provider vouches; raises where nobody here is meant."""

    async def vouched(self, email: str, address: str) -> T_co: ...

    def failed(self, email: str, address: str) -> None: ...


class _Flow(msgspec.Struct, frozen=True, array_like=True):
    state: str
    nonce: str
    verifier: str
    ends_at_ms: int
    target: str = ""

    def __repr__(self) -> str:
        return "<Flow>"


class CodeFlow:
    """Sign-ins at one provider, begun and ended in one browser.

    `seal` and `unseal` keep a text from who holds it; `cookie` is its name, `secure` whether TLS carries it.
    """

    def __init__(
        self,
        provider: Provider,
        seal: Callable[[bytes], str],
        unseal: Callable[[str], bytes | None],
        *,
        cookie: str,
        secure: bool = True,
    ) -> None:
        self._provider = provider
        self._seal = seal
        self._unseal = unseal
        self._cookie = cookie
        self._secure = secure

    async def begin(self, target: str = "") -> Response:
        """To the provider; `target` comes back with the end. Raises ProviderUnavailable."""
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        address = await self._provider.address(state=state, nonce=nonce, verifier=verifier)
        response = RedirectResponse(address, 303, {"cache-control": "no-store"})
        flow = _Flow(state, nonce, verifier, clock.now_ms() + LASTS_SECONDS * 1000, target)
        self._set(response, self._seal(msgspec.msgpack.encode(flow)), LASTS_SECONDS)
        return response

    async def end(self, request: Request, accounts: Accounts[T]) -> tuple[T, str]:
        """The session of whom the provider sent back, and the target; a failure is counted.

        Raises ValidationError where this browser began nothing, IdentityRefused, ProviderUnavailable, and as
        `accounts`.
        """
        address = peer.address(request.scope)
        try:
            email, target = await self._proved(request)
        except (IdentityRefused, ValidationError):
            # Whose account was meant is not known, or not proved.
            accounts.failed("", address)
            raise
        return await accounts.vouched(email, address), target

    async def _proved(self, request: Request) -> tuple[str, str]:
        """The verified e-mail address of whom the provider sent back, and the target."""
        flow = self._begun(request)
        await self._provider.check_issuer(request.query_params.get("iss"))
        if request.query_params.get("error") is not None:
            raise IdentityRefused
        code = request.query_params.get("code", "")
        if not 0 < len(code) <= _MAX_CODE:
            raise ValidationError("code", "is missing, or longer than any code")
        email = await self._provider.email(code, nonce=flow.nonce, verifier=flow.verifier)
        return email, flow.target

    def target(self, request: Request) -> str:
        """Where whoever began in this browser was going; empty where nothing was begun."""
        flow = self._opened(request.cookies.get(self._cookie, ""))
        return "" if flow is None else flow.target

    def forget(self, response: Response) -> None:
        """Have the browser forget what it began."""
        self._set(response, "", 0)

    def _begun(self, request: Request) -> _Flow:
        flow = self._opened(request.cookies.get(self._cookie, ""))
        given = request.query_params.get("state", "")
        if (
            flow is None
            or clock.now_ms() >= flow.ends_at_ms
            or not secrets.compare_digest(given.encode("utf-8", "surrogatepass"), flow.state.encode())
        ):
            raise ValidationError("state", "is not that of a sign-in begun here; begin again")
        return flow

    def _opened(self, cookie: str) -> _Flow | None:
        content = self._unseal(cookie)
        try:
            return None if content is None else msgspec.msgpack.decode(content, type=_Flow)
        except msgspec.MsgspecError:
            return None

    def _set(self, response: Response, value: str, seconds: int) -> None:
        # `lax`: the provider sends the browser back from another site, by a link and not by a form.
        response.set_cookie(
            self._cookie,
            value,
            max_age=seconds,
            path="/",
            secure=self._secure,
            httponly=True,
            samesite="lax",
        )


def provider(settings: Settings, redirect_url: str) -> Provider | None:
    """The provider of the settings, if any, which leads back to this address. Raises SettingsError."""
    if settings.oidc_issuer is None:
        return None
    return Provider(
        settings.oidc_issuer,
        settings.oidc_client_id or "",
        settings.oidc_client_secret,
        redirect_url,
        tls.public_context(settings.oidc_ca_file, "oidc_ca_file"),
    )
