"""Health answers: what is checked, what was found, since when the process runs."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from broker import clock

OK = "ok"
DAY_MS = 24 * 3_600_000
WARN_DAYS = 14


class Check(msgspec.Struct, frozen=True, omit_defaults=True):
    """One finding; `detail` says what is waited for or wrong, never an address or a secret."""

    ok: bool
    detail: str = ""
    essential: bool = True
    """Whether the process is of no use without; else a failure leaves it `degraded`, and answering 200."""


class Answer(msgspec.Struct, frozen=True):
    """The body of a health answer."""

    status: str
    version: str
    timestamp: str
    checks: Mapping[str, str]
    uptime_seconds: float


def expiry(ends_ms: int) -> Check:
    """The process's own certificate: failed once expired, and a word beforehand."""
    days = (ends_ms - clock.now_ms()) / DAY_MS
    if days <= 0:
        return Check(ok=False, detail="expired")
    return Check(ok=True, detail=f"ends in {days:.0f} days" if days < WARN_DAYS else "")


Checks = Callable[[], Awaitable[Mapping[str, Check]]]


def version() -> str:
    """The installed version of the broker."""
    return importlib.metadata.version("broker")


class Health:
    """The health endpoint of a process: 200 when every check is ok, else 503 with Retry-After."""

    def __init__(self, checks: Checks) -> None:
        self._checks = checks
        self._started = clock.monotonic()
        self._version = version()

    async def answer(self) -> tuple[bool, Answer]:
        """Run the checks now."""
        found = await self._checks()
        ok = all(check.ok or not check.essential for check in found.values())
        status = "unhealthy" if not ok else "healthy" if all(c.ok for c in found.values()) else "degraded"
        texts = {name: check.detail or (OK if check.ok else "failed") for name, check in found.items()}
        uptime = round(clock.monotonic() - self._started, 3)
        return ok, Answer(status, self._version, clock.iso(clock.now_ms()), texts, uptime)

    async def endpoint(self, _request: Request) -> Response:
        """GET of health."""
        ok, answer = await self.answer()
        headers = {"cache-control": "no-store"} | ({} if ok else {"retry-after": "1"})
        return Response(
            msgspec.json.encode(answer), 200 if ok else 503, headers, media_type="application/json"
        )
