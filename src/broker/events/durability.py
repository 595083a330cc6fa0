"""Whether this Redis keeps what it acknowledges, what it can do, and how full it is."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from redis.exceptions import NoPermissionError, ResponseError

from broker import clock, lifecycle, telemetry
from broker.errors import BrokerError, LogFull, LogUnavailable, UnsafeRedis
from broker.events.connection import Redis, call, text
from broker.settings import Settings

MIN_VERSION: Final = (7, 0)
REQUIRED: Final = {
    "appendonly": "yes",
    "appendfsync": "always",
    # With `yes` nothing is flushed while the file is rewritten, `always` or not.
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
}
FULLNESS_POLL: Final = 1.0
RELIEF: Final = 0.95
"""Full ends below this share of the mark, so that it does not flicker."""

log = telemetry.get_logger(__name__)


class Report(msgspec.Struct, frozen=True):
    """What the check found. `problems` is not empty only where unsafe settings were allowed."""

    version: str
    waitaof: bool
    problems: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()


async def check(redis: Redis, settings: Settings) -> Report:
    """Look at the server before anything is acknowledged on it.

    Raises UnsafeRedis with the settings to change; unless `allow_unsafe_redis`, which a replica or a version
    before 7.0 does not heed, because nothing works there. Raises LogUnavailable.
    """
    info = await _info(redis)
    unusable = _unusable(info)
    if unusable:
        raise UnsafeRedis(" ".join(unusable))
    values, unchecked = await _values(redis, info)
    problems = _problems(values)
    if problems and not settings.allow_unsafe_redis:
        raise UnsafeRedis(
            f"{' '.join(problems)} Change this on the server, or set allow_unsafe_redis to accept the loss."
        )
    if problems:
        log.warning("unsafe_redis_allowed", problems=problems)
    if unchecked:
        log.warning("redis_settings_unchecked", settings=unchecked)
    waitaof = await has_command(redis, "WAITAOF")
    return Report(str(info.get("redis_version", "")), waitaof, tuple(problems), tuple(unchecked))


async def has_command(redis: Redis, name: str) -> bool:
    """Whether the server knows a command; False too where it may not be asked."""
    try:
        # By `execute_command`, because redis-py's parser of COMMAND INFO trips over unknown commands.
        reply: Any = await call(redis.execute_command("COMMAND DOCS", name))  # type: ignore[no-untyped-call]
    except LogUnavailable as error:
        if not _forbidden(error.__cause__):
            raise
        return False
    return bool(reply)


async def _info(redis: Redis) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for section in ("server", "replication", "persistence", "memory"):
        found |= await call(redis.info(section))
    return found


def _unusable(info: dict[str, Any]) -> list[str]:
    """Why nothing would work on this server."""
    found = []
    version = str(info.get("redis_version", "0"))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < MIN_VERSION:
        found.append(f"It is version {version}; 7.0 or newer is needed.")
    if info.get("role") not in {"master", None}:
        primary = f"{info.get('master_host', '?')}:{info.get('master_port', '?')}"
        found.append(f"It is a replica; point redis_url (BROKER_REDIS_URL) at its primary, {primary}.")
    return found


async def _values(redis: Redis, info: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """The settings that matter, from CONFIG or else INFO; and those that neither shows."""
    values: dict[str, str] = {}
    for name in REQUIRED:
        try:
            reply = await call(redis.config_get(name))
        except LogUnavailable as error:
            if not _forbidden(error.__cause__):
                raise
            break
        values |= {text(key): text(value) for key, value in reply.items()}
    if "aof_enabled" in info:
        values.setdefault("appendonly", "yes" if str(info["aof_enabled"]) == "1" else "no")
    if "maxmemory_policy" in info:
        values.setdefault("maxmemory-policy", str(info["maxmemory_policy"]))
    return values, [name for name in REQUIRED if name not in values]


def _forbidden(error: BaseException | None) -> bool:
    """Whether the server answered that CONFIG is renamed or not for this user."""
    return isinstance(error, NoPermissionError | ResponseError)


def _problems(values: dict[str, str]) -> list[str]:
    return [
        f"{name} is {values[name]!r} and must be {wanted!r} (CONFIG SET {name} {wanted}, and in its "
        f"configuration file)."
        for name, wanted in REQUIRED.items()
        if name in values and values[name] != wanted
    ]


# -- Fullness -----------------------------------------------------------------------------------------------


class Sample(msgspec.Struct, frozen=True):
    """One look at memory and disk, in bytes. `limit` 0: the server has no bound of memory."""

    used: int = 0
    limit: int = 0
    disk_free: int | None = None
    """None where the server's disk is not ours to see."""
    aof_writes: bool = True
    """False while the server cannot write its append-only file."""

    @property
    def ratio(self) -> float:
        """The share of memory in use, 0 without a bound."""
        return self.used / self.limit if self.limit else 0.0


class Marks(msgspec.Struct, frozen=True):
    """Above which share of memory, and below how many bytes of free disk, the log counts as full."""

    memory: float
    disk_free: int


def reason(sample: Sample, marks: Marks, *, was_full: bool) -> str | None:
    """Why the log is full, None while it is not. Once full it stays so until there is clearly room."""
    memory = marks.memory * RELIEF if was_full else marks.memory
    disk = marks.disk_free / RELIEF if was_full else marks.disk_free
    if sample.ratio >= memory:
        return f"memory: {sample.ratio:.0%} of {sample.limit} bytes are in use"
    if sample.disk_free is not None and sample.disk_free < disk:
        return f"disk: {sample.disk_free} bytes are free"
    if not sample.aof_writes:
        return "disk: the server cannot write its append-only file"
    return None


METRICS: Final = {
    "broker_log_memory_used_bytes": "Memory that Redis uses.",
    "broker_log_memory_limit_bytes": "Memory that Redis may use, 0 where it has no limit.",
    "broker_log_memory_used_ratio": "Share of Redis' memory that is used.",
    "broker_log_full": "1 while nothing new is accepted because memory or disk is nearly full.",
    "broker_log_disk_free_bytes": "Free disk of the embedded Valkey.",
}
"""What `Fullness.metrics` tells."""


class Fullness:
    """Watches memory and disk; `run` must be running.

    `directory`: where the server writes, only where that is a disk of this machine (embedded).
    """

    def __init__(
        self, redis: Redis, settings: Settings, directory: Path | None = None, *, poll: float = FULLNESS_POLL
    ) -> None:
        self._redis = redis
        self._directory = directory
        self._poll = poll
        self._marks = Marks(settings.log_full_ratio, settings.disk_free_min_mb * 1024 * 1024)
        self.sample = Sample()
        self.reason: str | None = None
        self.sampled_at: float | None = None
        """Monotonic time of the last successful look; while Redis is away the last answer stands."""
        self.failure: BrokerError | None = None
        """Why the last look failed, None when it did not."""

    @property
    def state(self) -> Literal["ok", "full"]:
        """`full` at a high-water mark."""
        return "ok" if self.reason is None else "full"

    def require_room(self) -> None:
        """Raises LogFull at a high-water mark."""
        if self.reason is not None:
            raise LogFull(f"{self.reason}.")

    def metrics(self) -> dict[str, float]:
        """Values by metric name, of METRICS."""
        values = {
            "broker_log_memory_used_bytes": float(self.sample.used),
            "broker_log_memory_limit_bytes": float(self.sample.limit),
            "broker_log_memory_used_ratio": self.sample.ratio,
            "broker_log_full": float(self.reason is not None),
        }
        if self.sample.disk_free is not None:
            values["broker_log_disk_free_bytes"] = float(self.sample.disk_free)
        return values

    async def run(self, stop: asyncio.Event) -> None:
        """Look every second until `stop`; failures back off and show in `failure`."""
        waits = lifecycle.backoff(self._poll)
        while not stop.is_set():
            try:
                await self.look()
            except BrokerError as error:
                self.failure = error
                await lifecycle.sleep_or_stop(next(waits), stop)
            else:
                waits = lifecycle.backoff(self._poll)
                await lifecycle.sleep_or_stop(self._poll, stop)

    async def look(self) -> None:
        """Take one sample. Raises LogUnavailable."""
        memory = await call(self._redis.info("memory"))
        persistence = await call(self._redis.info("persistence"))
        self.sample = _sample(memory, persistence, self._disk_free())
        self.sampled_at, self.failure = clock.monotonic(), None
        before = self.reason
        self.reason = reason(self.sample, self._marks, was_full=before is not None)
        if (before is None) != (self.reason is None):
            log.warning("log_fullness_changed", state=self.state, reason=self.reason)

    def _disk_free(self) -> int | None:
        if self._directory is None:
            return None
        try:
            return shutil.disk_usage(self._directory).free
        except OSError as error:
            raise LogUnavailable(f"{self._directory}: {error.strerror}.") from None


def _sample(memory: dict[str, Any], persistence: dict[str, Any], disk_free: int | None) -> Sample:
    # What replication and AOF buffers hold does not count against maxmemory.
    used = int(memory.get("used_memory", 0)) - int(memory.get("mem_not_counted_for_evict", 0))
    limit = int(memory.get("maxmemory", 0)) or int(memory.get("total_system_memory", 0))
    return Sample(used, limit, disk_free, persistence.get("aof_last_write_status", "ok") == "ok")
