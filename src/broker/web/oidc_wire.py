"""What an OpenID Connect provider sends, and what of it is read."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Text = Annotated[str, Meta(min_length=1, max_length=2048)]


class Description(msgspec.Struct, frozen=True):
    """Its discovery document (OpenID Connect Discovery 1.0)."""

    issuer: Text
    authorization_endpoint: Text
    token_endpoint: Text
    jwks_uri: Text
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)
    authorization_response_iss_parameter_supported: bool = False


class Keys(msgspec.Struct, frozen=True):
    """Its public keys (RFC 7517)."""

    keys: list[dict[str, Any]]


class Answer(msgspec.Struct, frozen=True):
    """What it gives for a code."""

    id_token: Annotated[str, Meta(min_length=1, max_length=32_768)]
    access_token: str | None = None


class Header(msgspec.Struct, frozen=True):
    """What an ID token says of its key."""

    kid: str | None = None


class Failure(msgspec.Struct, frozen=True):
    """Why it gives nothing (RFC 6749, 5.2)."""

    error: str = ""


class Claims(msgspec.Struct, frozen=True):
    """Of an ID token. Types first: what authlib compares must be what it takes it for."""

    iss: Text
    sub: Annotated[str, Meta(min_length=1, max_length=255)]
    aud: Text | list[Text]
    exp: int
    iat: int
    nonce: Text
    email: Annotated[str, Meta(min_length=3, max_length=254)]
    email_verified: Literal[True]
    nbf: int | None = None
    azp: str | None = None
    at_hash: str | None = None
