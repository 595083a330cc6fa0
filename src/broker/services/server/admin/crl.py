"""GET /crl.pem and /crl.der: what was taken back before its date, for those who check our certificates."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker import clock
from broker.domain import certificates
from broker.domain.authority import Authority
from broker.domain.certificates import CertificateEntry
from broker.errors import AuthorityUnavailable
from broker.events.trust import Trust
from broker.web import body

PEM: Final = "application/x-pem-file"
DER: Final = "application/pkix-crl"
MAX_AGE: Final = 60
"""Seconds for which a cache may hand the list on without asking; then the ETag says whether it changed."""
HOUR_MS: Final = 3_600_000
_NEVER: Final = 253_402_300_799_999


class Spelling(msgspec.Struct, frozen=True):
    """The list as it is handed out in one format."""

    content: bytes
    etag: str
    media_type: str


class Signed(msgspec.Struct, frozen=True):
    """A list, of which registry, who is on it, and until when it is the right one; times in milliseconds."""

    pem: Spelling
    der: Spelling
    revision: str | None
    listed: frozenset[str]
    renew_ms: int
    next_update_ms: int


class RevocationList:
    """The endpoints. Signed anew when a certificate joins it and at half of its life, else as it is."""

    def __init__(self, trust: Trust, authority: Authority, *, hours: int) -> None:
        self._trust = trust
        self._authority = authority
        self._life_ms = hours * HOUR_MS
        self._signing = asyncio.Lock()
        self._signed: Signed | None = None

    def routes(self) -> list[Route]:
        """Both; anybody may read them."""
        return [
            Route("/crl.pem", self.pem, methods=["GET"]),
            Route("/crl.der", self.der, methods=["GET"]),
        ]

    async def pem(self, request: Request) -> Response:
        """The list as PEM."""
        signed = await self.current()
        return _answer(request, signed.pem, signed.next_update_ms)

    async def der(self, request: Request) -> Response:
        """The list as DER, as RFC 5280 (4.2.1.13) wants it served."""
        signed = await self.current()
        return _answer(request, signed.der, signed.next_update_ms)

    async def current(self) -> Signed:
        """The list as of now. Raises AuthorityUnavailable."""
        async with self._signing:
            now = clock.now_ms()
            signed = self._signed
            if not self._trust.fresh():
                # Without a proof nothing new may be said; what was said holds until its date.
                if signed is None or signed.next_update_ms <= now:
                    raise AuthorityUnavailable("The registry could not be proved fresh.")
                return signed
            revision = self._trust.revision
            if signed is not None and now < signed.renew_ms and revision == signed.revision:
                return signed
            known = self._trust.certificates()
            listed = frozenset(each.fingerprint for each in known if certificates.stopped(each, now))
            if signed is not None and now < signed.renew_ms and listed == signed.listed:
                renew = min(signed.renew_ms, *_joining(known, now))
                self._signed = msgspec.structs.replace(signed, revision=revision, renew_ms=renew)
            else:
                self._signed = await self._sign(known, listed, revision, now)
            return self._signed

    async def _sign(
        self, known: Sequence[CertificateEntry], listed: frozenset[str], revision: str | None, now: int
    ) -> Signed:
        until = now + self._life_ms
        crl = await self._authority.crl(known, now_ms=now, next_update_ms=until)
        renew = min(now + self._life_ms // 2, *_joining(known, now))
        return Signed(_spelt(crl.pem, PEM), _spelt(crl.der, DER), revision, listed, renew, until)


def _spelt(content: bytes, media_type: str) -> Spelling:
    return Spelling(content, f'"{hashlib.sha256(content).hexdigest()[:32]}"', media_type)


def _answer(request: Request, spelt: Spelling, next_update_ms: int) -> Response:
    left = max(0, next_update_ms - clock.now_ms()) // 1000
    headers = {"etag": spelt.etag, "cache-control": f"public, max-age={min(MAX_AGE, left)}"}
    if _holds(request, spelt.etag):
        return Response(status_code=304, headers=headers)
    return Response(spelt.content, headers=headers, media_type=spelt.media_type)


def _joining(known: Sequence[CertificateEntry], now: int) -> list[int]:
    """When others join the list without an event: the ends of overlaps, and of the calendar."""
    ends = (each.revoked_at_ms for each in known if each.status == "superseded")
    return [_NEVER, *(end for end in ends if end is not None and end > now)]


def _holds(request: Request, etag: str) -> bool:
    """Whether the caller has this very list (RFC 9110, 13.1.2)."""
    given = body.header(request.scope, b"if-none-match")
    if given is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in given.decode("latin-1").split(",")]
    return etag in tags or "*" in tags
