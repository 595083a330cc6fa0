"""The projector makes the hourly digest; every projector tries, and whoever is first makes it."""

from __future__ import annotations

import asyncio
import random
from typing import Final

from broker import clock
from broker.errors import BrokerError, LogUnavailable
from broker.events import digests
from broker.events.archive.storage import ArchiveUnavailable
from broker.events.connection import Redis
from broker.events.digests import Signed
from broker.events.digests_making import Digester
from broker.events.exported_session import Exports
from broker.events.keyring import Keyring
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.lifecycle import sleep_or_stop
from broker.settings import Settings
from broker.telemetry import get_logger
from broker.web import metrics as web

log = get_logger(__name__)
LOOK_SECONDS: Final = 30.0


class Metrics:
    """What is shown of the newest digest."""

    def __init__(self) -> None:
        self.number = web.gauge("broker_digest_number", "Number of the newest signed digest.", mode="livemax")
        self.age = web.gauge(
            "broker_digest_age_seconds",
            "Age of the newest signed digest; one is due every hour.",
            mode="livemax",
        )


class Digesting:
    """Looks now and then whether this hour's digest is there, and makes it if not."""

    def __init__(
        self,
        settings: Settings,
        *,
        redis: Redis,
        keys: LogKeys,
        identity: LogIdentity,
        keyring: Keyring,
        interval: float = LOOK_SECONDS,
    ) -> None:
        self._settings = settings
        self._parts = (redis, keys, identity, keyring)
        self._interval = interval
        self._digester: Digester | None = None
        self._said = ""
        self._metrics = Metrics()
        # Of the newest digest; where none is known yet, of our start.
        self._at_ms = clock.now_ms()

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; what goes wrong is said once and tried again."""
        while not stop.is_set():
            try:
                await self.look()
                self._say("")
            except BrokerError as error:
                self._say(str(error), away=isinstance(error, LogUnavailable | ArchiveUnavailable))
            await sleep_or_stop(self._interval * random.uniform(0.5, 1), stop)

    async def look(self) -> Signed | None:
        """Make the digest of this hour, unless it is there. Raises as `Digester.make`, DigestKeyError."""
        try:
            if self._digester is None:
                self._digester = Exports.of(self._settings, *self._parts).digester
            self._show(await self._digester.newest())
            made = await self._digester.hourly()
            self._show(made)
        finally:
            # Above all where none can be made: then it has to be seen to grow.
            self._metrics.age.set(max(0.0, (clock.now_ms() - self._at_ms) / 1000))
        if made is not None:
            log.info("digest_signed", number=made.number)
        return made

    def _show(self, newest: Signed | None) -> None:
        if newest is not None:
            self._at_ms = clock.parse_iso(digests.read(newest).at)
            self._metrics.number.set(newest.number)

    def _say(self, problem: str, *, away: bool = False) -> None:
        if problem and problem != self._said:
            (log.warning if away else log.error)("digest_not_made", reason=problem)
        self._said = problem
