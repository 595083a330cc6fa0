"""Signing in with e-mail address and password: throttled, recorded, and telling nobody who has an account.

Every refusal takes one bcrypt check and says the same, whether the account exists, is disabled, or the
password is wrong.
"""

from __future__ import annotations

import asyncio
import os
import string
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from broker import telemetry
from broker.domain import users
from broker.domain.users import UserEntry
from broker.errors import BrokerError, ValidationError
from broker.events import login_throttle, user_commands
from broker.events.access import AccessLog
from broker.events.control import Registry, user_field
from broker.events.login_throttle import LoginThrottle, Throttled
from broker.events.sessions import Session, Sessions
from broker.events.types import LoginFailed, LoginSucceeded

# What an unknown account is checked against: of a random password that nobody kept, at the same cost.
DECOY: Final = "$2b$12$ult8FeEbcU1rQRC//06YdeWdYOMpdDjWNqU46DTShpqfIGbjc0/pa"
MAX_WAITING: Final = 64
MAX_WAITING_OF_ONE: Final = 8
"""Attempts in progress of one address, so that one cannot fill the queue of all."""
MAX_GROUPS: Final = 50
FLUSH_SECONDS: Final = 1.0

_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)

log = telemetry.get_logger(__name__)


class SignInRefused(BrokerError):
    """E-mail address or password is wrong."""

    code = "unauthorized"


class Failures:
    """Failed attempts, gathered: at most MAX_GROUPS events a second, whatever the attackers' rate."""

    def __init__(self, access: AccessLog) -> None:
        self._access = access
        self._counts: Counter[tuple[bytes, str | None]] = Counter()

    def add(self, account: bytes, address: str) -> None:
        """Count one. Past the number of groups, they are counted together, without account and address."""
        group = account, login_throttle.network(address)
        full = len(self._counts) >= MAX_GROUPS and group not in self._counts
        self._counts[(b"", None) if full else group] += 1

    async def flush(self) -> None:
        """Write what was gathered. Raises LogUnavailable; it is kept then, and counts twice if it arrived."""
        taken, self._counts = self._counts, Counter()
        if not taken:
            return
        try:
            await self._access.append(
                *(
                    (f"login:{account.hex()}", LoginFailed(account, address, count))
                    for (account, address), count in taken.items()
                ),
                actor="system",
            )
        except BaseException:  # being cancelled too
            self._counts.update(taken)
            raise

    async def run(self) -> None:
        """Write them every second until cancelled; what Redis does not take waits."""
        waiting = False
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            try:
                await self.flush()
                waiting = False
            except BrokerError as error:
                if not waiting:
                    log.error("failed_logins_wait", reason=str(error))
                waiting = True

    async def aclose(self) -> None:
        """Write what is left, for the last time."""
        try:
            await self.flush()
        except BrokerError as error:
            log.error("failed_logins_lost", count=self._counts.total(), reason=str(error))


class Places:
    """Attempts in progress: so many at once, and so many of one address."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()

    @contextmanager
    def taken(self, address: str) -> Iterator[None]:
        """A place for the body of the `with`. Raises Throttled."""
        place = login_throttle.network(address)
        if self._taken[place] >= MAX_WAITING_OF_ONE or self._taken.total() >= MAX_WAITING:
            raise Throttled(1.0)
        self._taken[place] += 1
        try:
            yield
        finally:
            self._taken[place] -= 1
            if not self._taken[place]:
                del self._taken[place]


class SignIn:
    """Signs people in. `failures` must be running."""

    def __init__(
        self,
        registry: Registry,
        sessions: Sessions,
        throttle: LoginThrottle,
        access: AccessLog,
        failures: Failures,
    ) -> None:
        self._registry = registry
        self._sessions = sessions
        self._throttle = throttle
        self._access = access
        self._failures = failures
        self._places = Places()
        # More at once than there are processors would only make each slower.
        self._processors = asyncio.Semaphore(max(1, os.cpu_count() or 1))

    async def __call__(self, email: str, password: str, address: str) -> Session:
        """A session. Raises SignInRefused, Throttled, LogUnavailable and LogFull."""
        async with self._attempt(email, address):
            user = await self._holder(email)
            good = await self._matches(password, DECOY if user is None else user.password_hash)
            if user is None or not good or user.disabled:
                self.failed(email, address)
                raise SignInRefused
        session = await self._begin(user, address)
        await self._throttle.passed(self._throttle.account(email), address)
        return session

    async def vouched(self, email: str, address: str) -> Session:
        """A session for whoever an identity provider says has this e-mail address. Raises as above."""
        # Lower case makes a `k` of the Kelvin sign: an address that others would write alike is not this one.
        own = email.strip().translate(_ASCII_LOWER) == email.strip().lower()
        user = await self._holder(email) if own else None
        if user is None or user.disabled:
            self.failed(email, address)
            raise SignInRefused
        return await self._begin(user, address)

    def failed(self, email: str, address: str) -> None:
        """Record an attempt that was refused."""
        self._failures.add(self._throttle.account(email), address)

    async def _begin(self, user: UserEntry, address: str) -> Session:
        session = await self._sessions.start(user)
        actor = f"user:{user.user_id}"
        event = LoginSucceeded(user.user_id, address)
        await self._access.append((actor, event), actor=actor, correlation_id=telemetry.correlation.get())
        return session

    async def check(self, user: UserEntry, password: str, address: str) -> bool:
        """Whether it is the password of somebody signed in; counts as an attempt. Raises as above."""
        async with self._attempt(user.email, address):
            if not await self._matches(password, user.password_hash):
                self.failed(user.email, address)
                return False
        await self._throttle.passed(self._throttle.account(user.email), address)
        return True

    async def _holder(self, email: str) -> UserEntry | None:
        """Who has this e-mail address; as many reads when nobody does."""
        try:
            field = user_commands.email_field(users.normalised_email(email))
        except ValidationError:
            field = user_commands.email_field("")
        user_id = await self._registry.read(field, str)
        return await self._registry.read(user_field(user_id or ""), UserEntry)

    @asynccontextmanager
    async def _attempt(self, email: str, address: str) -> AsyncIterator[None]:
        """A place in the queue, and an attempt that is counted. Raises Throttled."""
        with self._places.taken(address):
            await self._throttle.attempt(self._throttle.account(email), address)
            yield

    async def _matches(self, password: str, password_hash: str) -> bool:
        async with self._processors:
            return await user_commands.password_matches(password, password_hash)
