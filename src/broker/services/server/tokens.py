"""Access tokens: JWTs that live for half an hour, signed by Ed25519 and read strictly.

The algorithm is pinned and the key is chosen by its id among our own: what a token says of itself decides
nothing. A token names a session, which must still be alive (`broker.events.sessions`).
"""

from __future__ import annotations

import base64
import re
import secrets
from typing import Annotated, Final, Literal

import msgspec
from joserfc import jwt
from joserfc.errors import JoseError
from msgspec import Meta, structs

from broker import clock
from broker.errors import BrokerError
from broker.services.server.token_keys import TokenKeys

ALGORITHM: Final = "Ed25519"
"""Ed25519's own name (RFC 9864); the older `EdDSA` leaves the curve open."""
TYPE: Final = "at+jwt"
"""RFC 9068: an access token, so that no other kind of token is taken for one."""
AUDIENCE: Final = "broker:portal-api"
LIFETIME: Final = 1800
"""Seconds."""
SKEW: Final = 5
"""Seconds that the clock of another server may be ahead."""
MAX_BYTES: Final = 2048

# 64 bytes of signature are 86 characters, of which the last carries two bits.
_FORM = re.compile(r"([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{85}[AQgw]\Z", re.ASCII)

Name = Annotated[str, Meta(min_length=1, max_length=128)]
Seconds = Annotated[int, Meta(ge=0)]


class TokenRefused(BrokerError):
    """The access token is not valid."""

    code = "unauthorized"


class TokenExpired(TokenRefused):
    """The access token has expired."""


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    alg: Literal["Ed25519"]
    kid: Name
    typ: Literal["at+jwt"]


class Claims(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a token says. Times in seconds since the epoch; `sub` is the user's id, `sid` the session's."""

    iss: str
    aud: str
    sub: Name
    role: Name
    sid: Name
    jti: Name
    iat: Seconds
    nbf: Seconds
    exp: Seconds


class Tokens:
    """Issues and verifies the access tokens of one installation, which `issuer` names."""

    def __init__(self, keys: TokenKeys, issuer: str) -> None:
        self._keys = keys
        self._issuer = issuer

    def issue(self, user_id: str, role: str, session_id: str) -> str:
        """A token for this session."""
        now = clock.now_ms() // 1000
        key_id, key = self._keys.signing()
        claims = Claims(
            iss=self._issuer,
            aud=AUDIENCE,
            sub=user_id,
            role=role,
            sid=session_id,
            jti=secrets.token_urlsafe(16),
            iat=now,
            nbf=now,
            exp=now + LIFETIME,
        )
        header = {"alg": ALGORITHM, "kid": key_id, "typ": TYPE}
        return jwt.encode(header, structs.asdict(claims), key, algorithms=[ALGORITHM])

    def verify(self, token: str) -> Claims:
        """The claims of a token of ours that is valid now. Raises TokenExpired, TokenRefused."""
        form = _FORM.match(token) if len(token) <= MAX_BYTES else None
        if form is None:
            raise TokenRefused("It is malformed.")
        key = self._keys.verifying(_header(form[1]).kid)
        if key is None:
            raise TokenRefused("Its key is unknown.")
        try:
            said = jwt.decode(token, key, algorithms=[ALGORITHM]).claims
            claims = msgspec.convert(said, Claims)
        except (JoseError, msgspec.ValidationError):
            raise TokenRefused("Its signature or its content is wrong.") from None
        if (claims.iss, claims.aud) != (self._issuer, AUDIENCE):
            raise TokenRefused("It is not meant for this service.")
        _check_times(claims, clock.now_ms() / 1000)
        return claims


def _header(encoded: str) -> _Header:
    try:
        return msgspec.json.decode(
            base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)), type=_Header
        )
    except (msgspec.MsgspecError, ValueError):
        raise TokenRefused("Its header is wrong.") from None


def _check_times(claims: Claims, now: float) -> None:
    if now >= claims.exp:
        raise TokenExpired
    if max(claims.nbf, claims.iat) > now + SKEW:
        raise TokenRefused("It is not valid yet.")
    if claims.exp - claims.iat > LIFETIME:
        raise TokenRefused("It would live too long.")
