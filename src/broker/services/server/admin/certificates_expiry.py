"""Certificates that end soon, the authority's too: counted for the metrics, told once a day in the log."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import Final

from prometheus_client import Gauge

from broker import clock, telemetry
from broker.domain import certificates
from broker.domain.authority import Authority
from broker.domain.certificates import ROLES, CertificateEntry
from broker.errors import AuthorityUnavailable, LogUnavailable
from broker.events.notices import Notices
from broker.events.trust import Trust
from broker.web import metrics

DAY_MS: Final = 24 * 3_600_000
EVERY_SECONDS: Final = 60.0

log = telemetry.get_logger(__name__)


def gauge() -> Gauge:
    """Certificates that end soon; every server counts the same ones."""
    return metrics.gauge(
        "broker_certificates_expiring",
        "Current certificates that end within certificate_warning_days.",
        ("role",),
        mode="livemax",
    )


class ExpiryWatch:
    """Looks every minute. Of several servers one tells; a renewed certificate is nobody's worry any more."""

    def __init__(self, trust: Trust, authority: Authority, notices: Notices, *, days: int) -> None:
        self._trust = trust
        self._authority = authority
        self._notices = notices
        self._ahead_ms = days * DAY_MS
        self._gauge = gauge()
        self._told: set[str] = set()
        self._day = ""

    async def run(self) -> None:
        """Look, as soon as the registry is known, until cancelled."""
        await self._trust.wait_fresh()
        while True:
            # Health says that Redis is away; what was not told now is told later.
            with suppress(LogUnavailable):
                await self.look()
            await asyncio.sleep(EVERY_SECONDS)

    async def look(self) -> None:
        """Count, and tell what was not told today. Raises LogUnavailable."""
        known = self._trust.certificates()
        # Without its file there is no authority whose end could be told.
        with suppress(AuthorityUnavailable):
            known.append(await self._authority.own())
        now = clock.now_ms()
        soon = [
            each
            for each in known
            if certificates.is_active(each, now) and each.not_after_ms <= now + self._ahead_ms
        ]
        counts = Counter(each.role for each in soon)
        for role in (*ROLES, "authority"):
            self._gauge.labels(role).set(counts[role])
        today = clock.iso(now)[:10]
        if today != self._day:
            self._day = today
            self._told.clear()
        for each in soon:
            if each.fingerprint not in self._told:
                if await self._notices.first(f"expiry:{each.fingerprint}", today):
                    _tell(each, now)
                self._told.add(each.fingerprint)


def _tell(entry: CertificateEntry, now_ms: int) -> None:
    log.warning(
        "certificate_expires",
        name=entry.client_id,
        role=entry.role,
        serial=entry.serial,
        fingerprint=entry.fingerprint,
        expires_at=clock.iso(entry.not_after_ms),
        days_left=(entry.not_after_ms - now_ms) // DAY_MS,
    )
