"""One rate for all processes without a call to Redis for each request: tokens are taken some at a time.

A process takes as many as it is about to need, up to a twentieth of a second's worth, before it spends them;
so all processes together never spend more than the rate. What it took and did not spend within a second is
lost. With Redis away each process counts for itself.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Protocol

from broker import clock, telemetry
from broker.errors import BrokerError
from broker.events.connection import Redis
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.events.login_throttle import network
from broker.events.rate_buckets import Grant, Rate, RateBuckets, Want
from broker.events.sealing import Sealer
from broker.settings import Settings

LEASE_SECONDS: Final = 0.05
"""As much as a process takes at most at a time; so much another one's customer may have to wait."""
KEPT_SECONDS: Final = 1.0
"""Tokens that are not spent by then are not spent."""
TIMEOUT_SECONDS: Final = 0.25
ALONE_SECONDS: Final = 1.0
"""After a failure a process counts for itself for so long before it asks Redis again."""
REMEMBERED: Final = 10_000
"""Buckets held in memory; one that is forgotten is asked for again."""

log = telemetry.get_logger(__name__)


class RateExceeded(BrokerError):
    """Too much in too short a time."""

    code = "rate_limit_exceeded"

    def __init__(self, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__()


class Buckets(Protocol):
    """Where tokens come from (`rate_buckets`)."""

    def bucket(self, kind: str, who: str) -> str: ...

    async def take(self, wants: Sequence[Want]) -> list[Grant]: ...


@dataclass(slots=True)
class _Lease:
    """What this process knows of one bucket. Times are monotonic seconds."""

    bucket: str
    full_at: float
    """When the bucket in Redis will be full, as far as is known here."""
    tokens: int = 0
    """Taken and not spent."""
    until: float = 0.0
    size: int = 1
    """How many are taken at a time: more where they are spent fast."""
    taken_at: float = 0.0
    not_before: float = 0.0
    """When it makes sense to ask again, after the bucket gave less than was wanted."""
    owed: int = 0
    asking: bool = False
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)


class RateLeases:
    """The limit of one kind (`certificate`, `address`); everybody who comes has a bucket of their own."""

    def __init__(
        self, buckets: Buckets, kind: str, per_second: float, named: Callable[[str], str] = str
    ) -> None:
        """`named`: what counts as one, of what is told of who comes."""
        self.kind = kind
        self._named = named
        self.rate = Rate(per_second, max(1, int(per_second)))
        self.alone_until = 0.0
        """Until when this process counts for itself, because Redis did not answer."""
        self._buckets = buckets
        self._most = max(1, int(per_second * LEASE_SECONDS))
        self._leases: OrderedDict[str, _Lease] = OrderedDict()
        self._asked: list[_Lease] = []
        self._asker: asyncio.Task[None] | None = None

    async def admit(self, who: str) -> None:
        """Spend one token. Raises RateExceeded when there is none."""
        lease, now = self._lease(who), clock.monotonic()
        if now < self.alone_until:
            self._spend_alone(lease, now)
            return
        if lease.tokens and now < lease.until and not lease.waiting:
            lease.tokens -= 1
            if lease.tokens <= lease.size // 4 and lease.size > 1:
                self._ask(lease)
            return
        if (wait := self._wait(lease, now)) > 0:
            raise RateExceeded(wait)
        turn = asyncio.get_running_loop().create_future()
        lease.waiting.append(turn)
        self._ask(lease)
        await turn

    def charge(self, who: str, tokens: int) -> None:
        """Spend tokens that may not be there: what is owed is paid off before anything else is let in."""
        lease, now = self._lease(who), clock.monotonic()
        held = lease.tokens if now < lease.until else 0
        spent = min(held, tokens)
        lease.tokens = held - spent
        owed = tokens - spent
        lease.full_at = max(lease.full_at, now) + owed / self.rate.per_second
        if owed and now >= self.alone_until:
            lease.owed += owed
            self._ask(lease)

    def left(self, who: str) -> tuple[int, float]:
        """Tokens that are left now, and the seconds until all are there again."""
        lease, now = self._lease(who), clock.monotonic()
        full_in = max(0.0, lease.full_at - now)
        held = lease.tokens if now < lease.until else 0
        return max(0, min(self.rate.burst, int(self._room(full_in)) + held)), full_in

    async def aclose(self) -> None:
        """Wait for the call that is under way."""
        if self._asker is not None:
            await self._asker

    def _lease(self, who: str) -> _Lease:
        who = self._named(who)
        lease = self._leases.get(who)
        if lease is None:
            lease = self._leases[who] = _Lease(self._buckets.bucket(self.kind, who), clock.monotonic())
            if len(self._leases) > REMEMBERED:
                self._forget()
        else:
            self._leases.move_to_end(who)
        return lease

    def _forget(self) -> None:
        who, oldest = next(iter(self._leases.items()))
        if oldest.waiting or oldest.owed:
            self._leases.move_to_end(who)
        else:
            del self._leases[who]

    def _room(self, full_in: float) -> float:
        # A microsecond is what the bucket's clock may have rounded away.
        return self.rate.burst - full_in * self.rate.per_second + 1e-6 * self.rate.per_second

    def _wait(self, lease: _Lease, now: float) -> float:
        """Seconds until the bucket has a token, 0 where it may have one."""
        needed = (1 - self._room(max(0.0, lease.full_at - now))) / self.rate.per_second
        return max(0.0, needed, lease.not_before - now)

    def _spend_alone(self, lease: _Lease, now: float) -> None:
        if (wait := self._wait(lease, now)) > 0:
            raise RateExceeded(wait)
        lease.full_at = max(lease.full_at, now) + 1 / self.rate.per_second

    # -- Taking tokens ------------------------------------------------------------------------------------

    def _ask(self, lease: _Lease) -> None:
        """See that this bucket is among those asked next; one call asks for all that want."""
        if not lease.asking:
            lease.asking = True
            self._asked.append(lease)
        if self._asker is None:
            self._asker = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._asked:
                asked, self._asked = self._asked, []
                wants = [self._want(lease) for lease in asked]
                try:
                    async with asyncio.timeout(TIMEOUT_SECONDS):
                        grants = await self._buckets.take(wants)
                except Exception as error:  # noqa: BLE001 - whatever it is, nobody must be left waiting
                    self._alone(asked, wants, error)
                else:
                    for lease, want, grant in zip(asked, wants, grants, strict=True):
                        self._granted(lease, want, grant)
        finally:
            self._asker = None

    def _want(self, lease: _Lease) -> Want:
        now = clock.monotonic()
        if now >= lease.until:
            lease.tokens = 0
        # Spent fast: take more at a time. Spent slowly: no more than is spent.
        if now - lease.taken_at < 2 * LEASE_SECONDS:
            lease.size = min(lease.size * 2, self._most)
        elif now - lease.taken_at > KEPT_SECONDS / 2:
            lease.size = 1
        wanted = max(lease.size - lease.tokens, len(lease.waiting))
        owed, lease.owed = lease.owed, 0
        # A charge alone takes nothing besides.
        return Want(lease.bucket, self.rate, 0 if owed and not lease.waiting else wanted, owed)

    def _granted(self, lease: _Lease, want: Want, grant: Grant) -> None:
        now = clock.monotonic()
        if self.alone_until:
            log.info("rate_limit_shared", kind=self.kind)
            self.alone_until = 0.0
        lease.asking = False
        # With what was charged while Redis was asked.
        lease.full_at = now + grant.full_in + lease.owed / self.rate.per_second
        if grant.given < want.wanted:
            lease.not_before = now + LEASE_SECONDS / 2
        if grant.given:
            lease.tokens += grant.given
            lease.taken_at, lease.until = now, now + KEPT_SECONDS
        while lease.waiting and lease.tokens:
            turn = lease.waiting.popleft()
            if not turn.done():
                lease.tokens -= 1
                turn.set_result(None)
        if lease.owed or (lease.waiting and grant.given == want.wanted):
            # It came while the rest was asked for.
            self._ask(lease)
        if grant.given == want.wanted:
            return
        wait = self._wait(lease, now)
        while lease.waiting:
            turn = lease.waiting.popleft()
            if not turn.done():
                turn.set_exception(RateExceeded(wait))

    def _alone(self, asked: list[_Lease], wants: list[Want], error: Exception) -> None:
        """Go on without Redis for a while; everybody starts from what was last known of their bucket."""
        now = clock.monotonic()
        if not self.alone_until:
            reason = str(error) or "Redis does not answer."
            if isinstance(error, BrokerError | TimeoutError):
                log.warning("rate_limit_alone", kind=self.kind, reason=reason)
            else:
                log.error("rate_limit_alone", kind=self.kind, reason=reason, exc_info=error)
        self.alone_until = now + ALONE_SECONDS
        for lease, want in zip(asked, wants, strict=True):
            lease.asking = False
            lease.full_at = max(lease.full_at, now) + want.owed / self.rate.per_second
            while lease.waiting:
                turn = lease.waiting.popleft()
                if turn.done():
                    continue
                try:
                    self._spend_alone(lease, now)
                except RateExceeded as exceeded:
                    turn.set_exception(exceeded)
                else:
                    turn.set_result(None)


class Limiting:
    """The limits that the settings give a process; None where there is none."""

    def __init__(
        self, settings: Settings, redis: Redis, keys: LogKeys, identity: LogIdentity, sealer: Sealer
    ) -> None:
        incarnation = identity.incarnations[keys.access.stream]
        buckets = RateBuckets(redis, keys.access, incarnation, sealer.rate_hash)
        messages, requests = settings.rate_limit_per_second, settings.rate_limit_per_address
        self.certificate = RateLeases(buckets, "certificate", messages) if messages else None
        named = lru_cache(REMEMBERED)(network)
        self.address = RateLeases(buckets, "address", requests, named) if requests else None

    async def aclose(self) -> None:
        """Wait for calls that are under way."""
        for each in (self.certificate, self.address):
            if each is not None:
                await each.aclose()
