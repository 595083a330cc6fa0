"""The authority in a process that serves: its key opened when first needed, its work off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeVar

from broker import telemetry
from broker.domain.certificates import CertificateEntry, Crl, Issued
from broker.errors import AuthorityUnavailable, BrokerError
from broker.services.ca.authority import CERTIFICATE_FILE, Authority, read_certificate

T = TypeVar("T")
OWN_ROLE: Final = "authority"

log = telemetry.get_logger(__name__)


class Signer:
    """Signs with the key in `key_file`; `directory` holds the authority's certificate.

    Every call but `own` raises AuthorityUnavailable while there is no key or it does not open. The files are
    tried again when they have changed: opening a sealed key is slow on purpose, and strangers ask for lists.
    """

    def __init__(self, directory: Path, key_file: Path, passphrase: str | None = None) -> None:
        self._directory = directory
        self._key_file = key_file
        self._passphrase = passphrase
        self._opening = asyncio.Lock()
        self._authority: Authority | None = None
        self._failed: tuple[object, ...] | None = None

    async def own(self) -> CertificateEntry:
        """The authority's certificate as if it were an entry of the registry, of the role `authority`.

        Raises AuthorityUnavailable when its file cannot be read.
        """
        try:
            found = await asyncio.to_thread(read_certificate, self._directory / CERTIFICATE_FILE)
        except (BrokerError, OSError) as error:
            raise AuthorityUnavailable(str(error)) from error
        return found.entry(OWN_ROLE, OWN_ROLE, issued_at_ms=found.not_before_ms)

    async def certificate_pem(self) -> str:
        """The authority's certificate."""
        return (await self._open()).certificate_pem

    async def issue(
        self,
        name: str,
        role: str,
        *,
        validity_days: int,
        csr_pem: str | None = None,
        dns: Iterable[str] = (),
        ips: Iterable[str] = (),
    ) -> Issued:
        """As `Authority.issue`."""
        return await self._sign(
            lambda authority: authority.issue(
                name, role, validity_days=validity_days, csr_pem=csr_pem, dns=dns, ips=ips
            )
        )

    async def crl(self, known: Iterable[CertificateEntry], *, now_ms: int, next_update_ms: int) -> Crl:
        """As `Authority.crl`."""
        return await self._sign(
            lambda authority: authority.crl(known, now_ms=now_ms, next_update_ms=next_update_ms)
        )

    async def _sign(self, work: Callable[[Authority], T]) -> T:
        authority = await self._open()
        return await asyncio.to_thread(work, authority)

    async def _open(self) -> Authority:
        if self._authority is not None:
            return self._authority
        # One at a time: argon2id takes 64 MiB and a tenth of a second for each.
        async with self._opening:
            if self._authority is None:
                self._authority = await asyncio.to_thread(self._load)
            return self._authority

    def _load(self) -> Authority:
        found = self._look()
        if found == self._failed:
            raise AuthorityUnavailable
        try:
            authority = Authority.load(self._directory, self._passphrase, self._key_file)
        except (BrokerError, OSError) as error:
            self._failed = found
            log.warning("ca_unavailable", reason=str(error))
            raise AuthorityUnavailable(str(error)) from error
        log.info("ca_opened", key=str(self._key_file))
        return authority

    def _look(self) -> tuple[object, ...]:
        """What changes when the files do."""
        found: list[object] = []
        for path in (self._directory / CERTIFICATE_FILE, self._key_file):
            try:
                stat = path.stat()
            except OSError:
                found.append(None)
            else:
                found += (stat.st_mtime_ns, stat.st_size, stat.st_ino, stat.st_mode)
        return tuple(found)
