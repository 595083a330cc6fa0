"""Who may come in: a request's certificate, judged against a registry that is proved fresh."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from starlette.types import Scope

from broker import clock
from broker.domain.certificates import ROLES, CertificateEntry
from broker.errors import TrustUnproved
from broker.web import identity
from broker.web.identity import Identity
from broker.web.problems import Problem


class Trust(Protocol):
    """The followed registry; `fresh` says whether it was proved to be current lately."""

    def certificate(self, fingerprint: str) -> CertificateEntry | None: ...

    def fresh(self) -> bool: ...


class Admission:
    """Lets certificates of some roles in. Judged at every request: revocation bites on open connections."""

    def __init__(self, trust: Trust, roles: Collection[str] = ROLES) -> None:
        self._trust = trust
        self._roles = frozenset(roles)

    def __call__(self, scope: Scope) -> Identity:
        """The caller. Raises Problem 401 or 403, or TrustUnproved."""
        peer = scope["state"].get("peer")
        if peer is None:
            raise Problem("client_certificate_required", "This needs a client certificate of this broker.")
        if not self._trust.fresh():
            raise TrustUnproved
        return identity.require(peer, self._trust, self._roles, clock.now_ms())
