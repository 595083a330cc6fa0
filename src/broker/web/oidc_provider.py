"""An OpenID Connect provider as its client sees it: where people sign in, and who they turned out to be.

Read as strictly as what strangers send: answers are bounded, redirects are not followed, the algorithm is one
of ours, and the claims are checked one by one (OpenID Connect Core 1.0, 3.1.3.7).
"""

from __future__ import annotations

import asyncio
import base64
import re
import ssl
from typing import Any, Final, TypeVar
from urllib.parse import quote_plus, urlsplit

import httpx
import msgspec
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import Key, import_key

from broker import clock, telemetry
from broker.errors import BrokerError
from broker.web import oidc_wire as wire

# Signed with a private key only: a shared secret would let everybody who can check a token make one.
ALGORITHMS: Final = [
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "Ed25519"),
]
SCOPE: Final = "openid email"
TIMEOUT: Final = 10.0
MAX_BYTES: Final = 256 * 1024
AGAIN_SECONDS: Final = 2.0
"""After a failure the provider is not asked who it is for so long; all who wait are told the same."""
KEPT_SECONDS: Final = 3600.0
"""How long the provider's description and keys are believed."""
REFETCH_SECONDS: Final = 10.0
"""Keys that are not known are asked for again, but not more often."""
SKEW: Final = 30
"""Seconds that the provider's clock may differ."""

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_CODE = re.compile(r"[a-z_]{1,64}\Z")

log = telemetry.get_logger(__name__)


class ProviderUnavailable(BrokerError):
    """The identity provider cannot be used now."""

    code = "identity_provider_unavailable"


class IdentityRefused(BrokerError):
    """The identity provider did not vouch for anybody who may sign in here."""

    code = "unauthorized"


T = TypeVar("T")


class Provider:
    """One provider. `secret` is None for a public client; `context` says which servers are believed."""

    def __init__(
        self, issuer: str, client_id: str, secret: str | None, redirect_url: str, context: ssl.SSLContext
    ) -> None:
        self.issuer = issuer
        self._client_id = client_id
        self._secret = secret
        self._redirect_url = redirect_url
        self._http = httpx.AsyncClient(
            verify=context, timeout=TIMEOUT, trust_env=False, headers={"accept": "application/json"}
        )
        self._lock = asyncio.Lock()
        self._described: tuple[float, wire.Description] | None = None
        self._failed_at = float("-inf")
        self._keys: dict[str | None, Key] = {}
        self._keys_at = float("-inf")

    async def address(self, *, state: str, nonce: str, verifier: str) -> str:
        """Where to send the browser. Raises ProviderUnavailable."""
        described = await self._description()
        return str(
            prepare_grant_uri(
                described.authorization_endpoint,
                self._client_id,
                "code",
                self._redirect_url,
                SCOPE,
                state,
                nonce=nonce,
                code_challenge=create_s256_code_challenge(verifier),
                code_challenge_method="S256",
            )
        )

    async def check_issuer(self, given: str | None) -> None:
        """That the answer in the browser is this provider's (RFC 9207). Raises IdentityRefused."""
        described = await self._description()
        missing = given is None and described.authorization_response_iss_parameter_supported
        if missing or given not in {None, self.issuer}:
            raise IdentityRefused("The answer is another provider's.")

    async def email(self, code: str, *, nonce: str, verifier: str) -> str:
        """The verified e-mail address of whoever signed in. Raises IdentityRefused, ProviderUnavailable."""
        answer = await self._exchange(code, verifier)
        key = await self._key(_key_id(answer.id_token))
        try:
            token = jwt.decode(answer.id_token, key, algorithms=ALGORITHMS)
            claims = msgspec.convert(token.claims, wire.Claims)
            options: Any = {
                "iss": {"essential": True, "value": self.issuer},
                "aud": {"essential": True, "value": self._client_id},
            }
            params = {"nonce": nonce, "client_id": self._client_id, "access_token": answer.access_token}
            CodeIDToken(token.claims, token.header, options, params).validate(clock.now_ms() // 1000, SKEW)
        except (JoseError, msgspec.ValidationError, ValueError) as error:
            log.warning("id_token_refused", reason=_reason(error))
            raise IdentityRefused from None
        return claims.email

    async def aclose(self) -> None:
        """Close connections."""
        await self._http.aclose()

    async def _exchange(self, code: str, verifier: str) -> wire.Answer:
        described = await self._description()
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect_url,
            "code_verifier": verifier,
        }
        auth = None
        if self._secret is None:
            form["client_id"] = self._client_id
        elif "client_secret_basic" in described.token_endpoint_auth_methods_supported:
            # Form-encoded before it is base64 (RFC 6749, 2.3.1).
            auth = httpx.BasicAuth(quote_plus(self._client_id), quote_plus(self._secret))
        else:
            form |= {"client_id": self._client_id, "client_secret": self._secret}
        status, content = await self._fetch("POST", described.token_endpoint, data=form, auth=auth)
        if status == 200:
            return _decode(content, wire.Answer, described.token_endpoint)
        code = _decode(content, wire.Failure, described.token_endpoint).error if status < 500 else ""
        if code == "invalid_grant":
            raise IdentityRefused("The sign-in was used before or took too long.")
        log.error("identity_provider_refuses_us", status=status, error=code if _CODE.match(code) else "")
        raise ProviderUnavailable

    async def _description(self) -> wire.Description:
        async with self._lock:
            if self._described is not None and clock.monotonic() - self._described[0] < KEPT_SECONDS:
                return self._described[1]
            if clock.monotonic() - self._failed_at < AGAIN_SECONDS:
                raise ProviderUnavailable
            try:
                found = await self._describe()
            except ProviderUnavailable:
                self._failed_at = clock.monotonic()
                raise
            self._described = (clock.monotonic(), found)
            return found

    async def _describe(self) -> wire.Description:
        url = f"{self.issuer.rstrip('/')}/.well-known/openid-configuration"
        found = await self._get(url, wire.Description)
        places = (found.authorization_endpoint, found.token_endpoint, found.jwks_uri)
        if found.issuer != self.issuer or not all(_private(place, self.issuer) for place in places):
            log.error("identity_provider_description_refused", issuer=self.issuer)
            raise ProviderUnavailable
        return found

    async def _key(self, key_id: str | None) -> Key:
        """The provider's key of this id; without an id its only one. Raises IdentityRefused."""
        described = await self._description()
        async with self._lock:
            age = clock.monotonic() - self._keys_at
            if age >= KEPT_SECONDS or (key_id not in self._keys and age >= REFETCH_SECONDS):
                found = await self._get(described.jwks_uri, wire.Keys)
                self._keys, self._keys_at = _usable(found.keys), clock.monotonic()
            if key_id is None and len(self._keys) == 1:
                return next(iter(self._keys.values()))
            key = self._keys.get(key_id)
        if key is None:
            raise IdentityRefused
        return key

    async def _get(self, url: str, kind: type[T]) -> T:
        status, content = await self._fetch("GET", url)
        if status != 200:
            log.error("identity_provider_failed", url=url, status=status)
            raise ProviderUnavailable
        return _decode(content, kind, url)

    async def _fetch(self, method: str, url: str, **options: Any) -> tuple[int, bytes]:
        """Status and body, bounded in size and in all in time. Raises ProviderUnavailable."""
        content = b""
        try:
            async with (
                asyncio.timeout(TIMEOUT),
                self._http.stream(method, url, **options) as response,
            ):
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > MAX_BYTES:
                        raise ProviderUnavailable
                return response.status_code, content
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
            log.error("identity_provider_unreachable", url=url, reason=type(error).__name__)
            raise ProviderUnavailable from None


def _private(url: str, issuer: str) -> bool:
    """Whether nobody on the way can read what is sent there."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    loopback = parts.scheme == "http" and parts.hostname in _LOOPBACK
    return bool(parts.hostname) and (parts.scheme == "https" or (loopback and issuer.startswith("http://")))


def _decode(content: bytes, kind: type[T], url: str) -> T:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # What was sent is left out: there are tokens in it.
        log.error("identity_provider_answer_refused", url=url, wanted=kind.__name__)
        raise ProviderUnavailable from None


def _key_id(token: str) -> str | None:
    """The key that an ID token names; what else it says of itself is not looked at before it is verified."""
    head = token.partition(".")[0]
    try:
        raw = base64.urlsafe_b64decode(head + "=" * (-len(head) % 4))
        return msgspec.json.decode(raw, type=wire.Header).kid
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise IdentityRefused from None


def _usable(keys: list[dict[str, Any]]) -> dict[str | None, Key]:
    """Keys that sign, by id; what this version does not know is left out."""
    found: dict[str | None, Key] = {}
    for one in keys:
        if one.get("use", "sig") != "sig" or one.get("kty") not in {"RSA", "EC", "OKP"}:
            continue
        try:
            key = import_key(one)
        except (JoseError, ValueError, KeyError, TypeError):
            continue
        found[one.get("kid") if isinstance(one.get("kid"), str) else None] = key
    return found


def _reason(error: Exception) -> str:
    """Which claim, never its value."""
    if isinstance(error, JoseError):
        return str(getattr(error, "claim", None) or error.error)
    named = re.search(rf"[`.]({'|'.join(wire.Claims.__struct_fields__)})`", str(error))
    return named[1] if named else type(error).__name__
