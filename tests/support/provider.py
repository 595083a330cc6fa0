"""A small real OpenID Connect provider: discovery, keys, the authorization code flow with PKCE.

It signs in at once, or shows a page first.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import parse_qs, urlencode

from joserfc import jwt
from joserfc.jwk import ECKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from support.serving import listening

CLIENT_ID, SECRET = "the broker", "marked+client/secret"
PAGE = """<!doctype html><html lang="en"><title>Provider</title><link rel="icon" href="data:,"><h1>Who are you?</h1>
<form method="post"><button name="answer" value="yes">Sign in</button> <button name="answer" value="no">Cancel</button>
</form></html>"""


class OidcProvider:
    """`person` is who sits at the browser. `changes` and `forge` make its ID tokens what they should not be.

    While `answers` is not set, codes are not exchanged. `asked` counts who wanted its description. With `asks`
    the person presses a button first, or cancels.
    """

    def __init__(self, redirect_url: str) -> None:
        self.redirect_url = redirect_url
        self.person: dict[str, Any] = {"sub": "s-1", "email": "reader@example.com", "email_verified": True}
        self.changes: dict[str, Any] = {}
        self.described: dict[str, Any] = {}
        self.forge: Callable[[dict, dict], str] | None = None
        self.methods = ["client_secret_basic"]
        self.asked = 0
        self.asks = False
        self.answers = asyncio.Event()
        self.answers.set()
        self.rotate("k-1")
        self._codes: dict[str, dict[str, str]] = {}

    def rotate(self, key_id: str) -> None:
        self.key = ECKey.generate_key("P-256", {"kid": key_id, "use": "sig"})

    @contextlib.asynccontextmanager
    async def serving(self, context: ssl.SSLContext | None) -> AsyncIterator[None]:
        """Over TLS as `localhost`; without a context plainly, and as 127.0.0.1."""
        routes = [
            Route("/.well-known/openid-configuration", self._describe),
            Route("/authorize", self._authorize, methods=["GET", "POST"]),
            Route("/keys", self._keys),
            Route("/token", self._token, methods=["POST"]),
        ]
        async with listening(Starlette(routes=routes), context=context) as running:
            host = "http://127.0.0.1" if context is None else "https://localhost"
            self.issuer = f"{host}:{running.port}"
            yield

    async def _describe(self, _request: Request) -> Response:
        self.asked += 1
        found = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "token_endpoint_auth_methods_supported": self.methods,
            "authorization_response_iss_parameter_supported": True,
        }
        return JSONResponse(found | self.described)

    async def _keys(self, _request: Request) -> Response:
        later = {"kty": "of a later time", "kid": "x"}
        return JSONResponse({"keys": [later, self.key.as_dict(private=False)]})

    async def _authorize(self, request: Request) -> Response:
        given = dict(request.query_params)
        wanted = {
            "client_id": CLIENT_ID,
            "redirect_uri": self.redirect_url,
            "response_type": "code",
            "code_challenge_method": "S256",
        }
        assert given.items() >= wanted.items(), given
        assert {"openid", "email"} <= set(given["scope"].split())
        assert min(len(given[name]) for name in ("state", "nonce", "code_challenge")) >= 43
        if self.asks and request.method == "GET":
            return HTMLResponse(PAGE)
        answer = {"state": given["state"], "iss": self.issuer}
        if request.method == "POST" and await request.body() == b"answer=no":
            answer |= {"error": "access_denied", "error_description": "<b>cancelled</b>"}
        else:
            code = secrets.token_urlsafe(16)
            self._codes[code] = given
            answer |= {"code": code, "session_state": "x"}
        return RedirectResponse(
            f"{self.redirect_url}?{urlencode(answer)}", 303 if request.method == "POST" else 302
        )

    async def _token(self, request: Request) -> Response:
        await self.answers.wait()
        form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        asked = self._codes.pop(form["code"], None)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest())
        if asked is None or challenge.rstrip(b"=").decode() != asked["code_challenge"]:
            return JSONResponse({"error": "invalid_grant"}, 400)
        if not self._is_client(request, form) or form["redirect_uri"] != self.redirect_url:
            return JSONResponse({"error": "invalid_client"}, 401)
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": CLIENT_ID, "iat": now, "exp": now + 60, "nonce": asked["nonce"]}
        claims |= self.person | self.changes
        claims = {name: value for name, value in claims.items() if value is not None}
        header = {"alg": "ES256", "kid": self.key.kid}
        token = self.forge(header, claims) if self.forge else jwt.encode(header, claims, self.key)
        return JSONResponse({"access_token": "opaque", "token_type": "Bearer", "id_token": token})

    def _is_client(self, request: Request, form: dict[str, str]) -> bool:
        if self.methods == ["client_secret_post"]:
            return (form.get("client_id"), form.get("client_secret")) == (CLIENT_ID, SECRET)
        quoted = "the+broker:marked%2Bclient%2Fsecret"
        return request.headers["authorization"] == "Basic " + base64.b64encode(quoted.encode()).decode()
