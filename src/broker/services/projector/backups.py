"""The projector shows when the last backup was made and when one was last verified, for alerts to watch."""

from __future__ import annotations

import asyncio
from typing import Final

from broker.events.backup import record
from broker.events.backup.record import Record, Remembered
from broker.lifecycle import sleep_or_stop
from broker.settings import Settings
from broker.telemetry import get_logger
from broker.web import metrics as web

log = get_logger(__name__)
LOOK_SECONDS: Final = 2.0


class Metrics:
    """Seconds since the epoch; 0 where there is none, so that this alerts, too."""

    def __init__(self) -> None:
        self.made = web.gauge(
            "broker_backup_last_success_timestamp_seconds",
            "When the last backup that was finished began, since the epoch; 0: none was made here.",
            mode="livemax",
        )
        self.verified = web.gauge(
            "broker_backup_last_verified_timestamp_seconds",
            "When backups were last read and found whole, since the epoch; 0: never here.",
            mode="livemax",
        )


class Backups:
    """Looks at the record of backups now and then."""

    def __init__(self, settings: Settings, interval: float = LOOK_SECONDS) -> None:
        self._settings = settings
        self._interval = interval
        self._metrics = Metrics()
        self._said = ""

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; a record that cannot be read counts as none and is said once."""
        while not stop.is_set():
            await self.look()
            await sleep_or_stop(self._interval, stop)

    async def look(self) -> None:
        """Carry the record into the metrics."""
        try:
            found, problem = await asyncio.to_thread(record.read, self._settings), ""
        except (OSError, ValueError) as error:
            found, problem = Record(), str(error)
        if problem and problem != self._said:
            log.error("backup_record_unreadable", reason=problem)
        self._said = problem
        self._metrics.made.set(_seconds(found.made))
        self._metrics.verified.set(_seconds(found.verified))


def _seconds(one: Remembered | None) -> float:
    return one.at_ms / 1000 if one is not None else 0.0
