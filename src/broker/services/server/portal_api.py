"""The portal's part of the server's OpenAPI document."""

from __future__ import annotations

from typing import Final

from broker.services.server import portal_wire
from broker.web.openapi import Operation

_BODY: Final = (400, 401, 413, 415, 503)

OPERATIONS: Final = [
    Operation(
        method="post",
        path="/portal/auth/login",
        summary="Sign in with e-mail address and password.",
        request=portal_wire.Login,
        answers={200: portal_wire.TokenPair},
        errors=(*_BODY, 429),
        certificate=False,
    ),
    Operation(
        method="post",
        path="/portal/auth/refresh",
        summary="Exchange a refresh token for the next pair; a token that is used twice ends its session.",
        request=portal_wire.Refresh,
        answers={200: portal_wire.TokenPair},
        errors=_BODY,
        certificate=False,
    ),
    Operation(
        method="post",
        path="/portal/auth/logout",
        summary="End the session of the access token.",
        answers={204: None},
        errors=(401, 503),
        bearer=True,
    ),
    Operation(
        method="get",
        path="/portal/profile",
        summary="Who is signed in.",
        answers={200: portal_wire.Profile},
        errors=(401, 503),
        bearer=True,
    ),
    Operation(
        method="post",
        path="/portal/profile/password",
        summary="Change one's password; every session ends, and the answer begins a new one.",
        request=portal_wire.PasswordChange,
        answers={200: portal_wire.PasswordChanged},
        errors=(*_BODY, 429),
        bearer=True,
    ),
]
