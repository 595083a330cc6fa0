"""The certificate authority as services need it. They never import each other; the wiring gives it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from broker.domain.certificates import CertificateEntry, Crl, Issued


class Authority(Protocol):
    """Signs. Every call but `own` raises AuthorityUnavailable where the key is not at hand."""

    async def own(self) -> CertificateEntry: ...

    async def certificate_pem(self) -> str: ...

    async def issue(
        self,
        name: str,
        role: str,
        *,
        validity_days: int,
        csr_pem: str | None = None,
        dns: Iterable[str] = (),
        ips: Iterable[str] = (),
    ) -> Issued: ...

    async def crl(self, known: Iterable[CertificateEntry], *, now_ms: int, next_update_ms: int) -> Crl: ...
