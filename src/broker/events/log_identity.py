"""Which log this is: an id made once, its number of partitions, and an incarnation per stream.

Redis holds it in every stream's `meta`; a file in the data directory remembers it, so that a process that
starts against an emptied or older Redis notices. An incarnation's text starts with its generation: a higher
one than the file's is a later life of the same log, a lower one an older copy.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from broker import lifecycle
from broker.errors import LogRefused, LogUnavailable, SettingsError
from broker.events import private_files
from broker.events.connection import Redis, call, text
from broker.events.keys import LogKeys
from broker.events.scripting import Arg, Script
from broker.settings import Settings

RESTORE: Final = (
    "`broker streams repair` tells what archive and tables still know of it, and brings that back. To begin "
    "a new log instead, set up a new data directory (with a new database, where mysql_url names one of your "
    "own)."
)

LOOK_SECONDS: Final = 1.0
"""How soon a process notices that the log was repaired."""

_create = Script("identity_create")
_join = Script("identity_join")


class LogIdentity(msgspec.Struct, frozen=True):
    """`incarnations` by stream name: every partition's number, `control` and `access`."""

    log_id: str
    partitions: Annotated[int, Meta(ge=1, le=256)]
    incarnations: dict[str, str]


class _Remembered(msgspec.Struct, frozen=True):
    log_name: str
    identity: LogIdentity


def file_path(settings: Settings) -> Path:
    """Where this data directory remembers its log."""
    return settings.data_dir / "run" / "log-identity.json"


def incarnation(generation: int = 1) -> str:
    """A fresh incarnation: generation, dot, 16 random hex digits."""
    return f"{generation}.{secrets.token_hex(8)}"


def generation(of: str) -> int:
    """The generation that an incarnation names; 0 for one not of ours."""
    head = of.partition(".")[0]
    return int(head) if head.isascii() and head.isdigit() else 0


async def create(redis: Redis, settings: Settings) -> LogIdentity:
    """The log's identity, made now if neither Redis nor the file knows one; safe when several do it at once.

    Continues a creation that was interrupted. Otherwise as `load`, with its errors.
    """
    keys = LogKeys(settings.log_name, settings.partitions)
    remembered = read_file(settings)
    stored = await call(redis.hmget(keys.control.meta, ["identity", "complete"]))
    if remembered is not None or stored[1] is not None:
        return await load(redis, settings)
    names = [stream.stream for stream in keys.streams]
    proposed = LogIdentity(
        secrets.token_hex(16), settings.partitions, {name: incarnation() for name in names}
    )
    decided = await _create(redis, [keys.control.meta], [msgspec.json.encode(proposed)])
    identity = _identity(decided)
    _check_partitions(identity, settings)
    for stream in keys.streams:
        args: list[Arg] = [identity.incarnations[stream.stream], identity.log_id, identity.partitions]
        await _join(redis, [stream.meta, stream.events], args)
    # Only now may anything be appended, so that a missing meta later always means a loss.
    await call(redis.hset(keys.control.meta, "complete", "1"))
    return await load(redis, settings)


async def load(redis: Redis, settings: Settings) -> LogIdentity:
    """The log's identity, as Redis and this data directory agree on it; remembers what Redis says if new.

    Raises LogRefused (Redis emptied, partly lost, an older copy, another log, or no log yet), SettingsError
    (another number of partitions, another log name) and LogUnavailable.
    """
    remembered = read_file(settings)
    keys = LogKeys(settings.log_name, settings.partitions)
    blob, complete = await call(redis.hmget(keys.control.meta, ["identity", "complete"]))
    if blob is None or complete is None:
        raise LogRefused(_missing(settings, remembered, begun=blob is not None))
    identity = _identity(blob)
    _check_partitions(identity, settings)
    await _check_streams(redis, keys, identity)
    _compare(identity, remembered)
    remember(settings, identity)
    return identity


async def succeeded(redis: Redis, settings: Settings, known: LogIdentity, stop: asyncio.Event) -> bool:
    """Wait until the log that a process knows has begun a later life; False when told to stop first."""
    while not await lifecycle.sleep_or_stop(LOOK_SECONDS, stop):
        with suppress(LogUnavailable):
            now = await stored(redis, settings)
            if now is None or now.log_id != known.log_id or now == known:
                continue
            pairs = ((now.incarnations.get(name, ""), one) for name, one in known.incarnations.items())
            if all(generation(later) > generation(former) for later, former in pairs):
                return True
    return False


async def exists(redis: Redis, settings: Settings) -> bool:
    """Whether Redis or the data directory knows this log. Raises LogUnavailable, or as `read_file`."""
    keys = LogKeys(settings.log_name, settings.partitions)
    return read_file(settings) is not None or await call(redis.hexists(keys.control.meta, "complete"))


async def stored(redis: Redis, settings: Settings) -> LogIdentity | None:
    """What Redis says by itself, whole or not; None where it says nothing that can be read."""
    blob = await call(redis.hget(LogKeys(settings.log_name, 0).control.meta, "identity"))
    try:
        return None if blob is None else msgspec.json.decode(blob, type=LogIdentity)
    except msgspec.MsgspecError:
        return None


def read_file(settings: Settings) -> LogIdentity | None:
    """What the data directory remembers. Raises LogRefused if damaged, SettingsError for another log name."""
    path = file_path(settings)
    try:
        stored = msgspec.json.decode(path.read_bytes(), type=_Remembered)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise LogRefused(
            f"{path} cannot be read ({error}). Restore it from a backup; or, if Redis is known to be intact, "
            "remove it: the next start writes it again."
        ) from None
    if stored.log_name != settings.log_name:
        raise SettingsError(
            f"log_name is {settings.log_name!r}, but {settings.data_dir} is of the log {stored.log_name!r}."
        )
    return stored.identity


def remember(settings: Settings, identity: LogIdentity) -> None:
    """Write the file, durably, unless it says so already. Raises LogRefused when it cannot."""
    path = file_path(settings)
    content = msgspec.json.encode(_Remembered(settings.log_name, identity))
    try:
        if not path.exists() or path.read_bytes() != content:
            private_files.write(path, content)
    except OSError as error:
        # Starting without it would leave an emptied Redis unnoticed next time.
        raise LogRefused(f"{path} cannot be written ({error.strerror}).") from None


def _identity(blob: bytes | str) -> LogIdentity:
    try:
        return msgspec.json.decode(blob, type=LogIdentity)
    except msgspec.MsgspecError as error:
        raise LogRefused(f"The identity in Redis is damaged ({error}). {RESTORE}") from None


def _missing(settings: Settings, remembered: LogIdentity | None, *, begun: bool) -> str:
    name = settings.log_name
    if remembered is not None:
        return (
            f"Redis holds no log {name!r}, but {settings.data_dir} knows one ({remembered.log_id}): Redis "
            f"was emptied, or this is another Redis. {RESTORE}"
        )
    if begun:
        return (
            f"The creation of the log {name!r} was not finished; `broker up` or `broker prepare` finishes it."
        )
    return f"Redis holds no log {name!r} yet; `broker up` or `broker prepare` creates it."


def _check_partitions(identity: LogIdentity, settings: Settings) -> None:
    if identity.partitions != settings.partitions:
        raise SettingsError(
            f"partitions is {settings.partitions}, but the log {settings.log_name!r} was created with "
            f"{identity.partitions}, which cannot change; set partitions = {identity.partitions}."
        )


async def _check_streams(redis: Redis, keys: LogKeys, identity: LogIdentity) -> None:
    """Every stream's meta must agree with the identity that control holds."""
    problems = []
    for stream in keys.streams:
        fields = ["incarnation", "log_id", "partitions"]
        values = await call(redis.hmget(stream.meta, fields))
        found = tuple(text(value) if value is not None else None for value in values)
        expected = (identity.incarnations.get(stream.stream), identity.log_id, str(identity.partitions))
        if found == (None, None, None):
            problems.append(f"{stream.stream} is lost")
        elif found != expected:
            problems.append(f"{stream.stream} is of another log or incarnation")
    if problems:
        raise LogRefused(f"Part of the log is missing or foreign: {'; '.join(problems)}. {RESTORE}")


def _compare(identity: LogIdentity, remembered: LogIdentity | None) -> None:
    """Whether what Redis says can follow what the file remembers. Raises LogRefused."""
    if remembered is None or remembered == identity:
        return
    if remembered.log_id != identity.log_id:
        raise LogRefused(
            f"Redis holds the log {identity.log_id}, but this data directory belongs to {remembered.log_id}. "
            "Point redis_url (BROKER_REDIS_URL) at the right Redis, or use another data directory."
        )
    for stream, known in remembered.incarnations.items():
        now = identity.incarnations.get(stream, "")
        if now != known and generation(now) <= generation(known):
            raise LogRefused(
                f"{stream} is at incarnation {now or 'none'}, but {known} is known: Redis was restored from "
                f"an older copy. {RESTORE}"
            )
