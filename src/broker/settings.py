"""Settings: `broker.toml` and `BROKER_*` environment variables, environment first.

A TOML table is a prefix: `[gateway] port = 8001` is `gateway_port = 8001` is `BROKER_GATEWAY_PORT=8001`.
An unknown or invalid setting stops the start with its name and what it takes.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit, urlunsplit

import msgspec
from msgspec import Meta

from broker.errors import SettingsError

PREFIX = "BROKER_"

Port = Annotated[int, Meta(ge=0, le=65535, description="a TCP port, 0 for any free one")]
Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that can be set. Times are in seconds, sizes in bytes unless the name says otherwise."""

    # Where things lie.
    data_dir: Path = Path("var")
    certs_dir: Path = Path("certs")

    # The log. Without `redis_url` the embedded Valkey of `data_dir` is used.
    redis_url: Annotated[str, Meta(pattern="^(rediss?|unix)://")] | None = None
    log_name: Annotated[str, Meta(pattern="^[a-z0-9-]{1,32}$")] = "broker"
    partitions: Annotated[int, Meta(ge=1, le=256)] = 4
    allow_unsafe_redis: bool = False
    wait_replicas: Annotated[int, Meta(ge=0, le=16)] = 0
    wait_timeout: Seconds = 1.0
    redis_timeout: Seconds = 5.0
    log_full_ratio: Annotated[float, Meta(gt=0, le=1)] = 0.9
    disk_free_min_mb: Annotated[int, Meta(ge=0)] = 256
    embedded_maxmemory_mb: Annotated[int, Meta(ge=16)] = 2048
    idempotency_hours: Annotated[int, Meta(ge=1, le=24 * 30)] = 24

    # Read models. Without `mysql_url` the embedded MariaDB of `data_dir` is used.
    mysql_url: Annotated[str, Meta(pattern="^mysql(\\+[a-z]+)?://")] | None = None
    mysql_pool: Annotated[int, Meta(ge=1, le=256)] = 8

    # Roles.
    gateway_host: str = "127.0.0.1"
    gateway_port: Port = 8001
    gateways: Annotated[int, Meta(ge=1, le=64)] = 1
    gateway_in_flight: Count = 4096
    server_host: str = "127.0.0.1"
    server_port: Port = 8000
    server_url: Annotated[str, Meta(pattern="^https://")] | None = None
    portal_host: str = "127.0.0.1"
    portal_port: Port = 8080
    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    worker_concurrency: Annotated[int, Meta(ge=1, le=10_000)] = 256
    worker_metrics_port: Port = 9100
    projector_metrics_port: Port = 9101
    metrics_host: str = "127.0.0.1"
    metrics_public: bool = False
    header_timeout: Seconds = 10.0
    body_timeout: Seconds = 20.0
    idle_timeout: Seconds = 75.0
    grace_period: Seconds = 20.0

    # Delivery.
    default_channel: Literal["inbox", "webhook", "simulated"] = "inbox"
    retry_schedule: Literal["fixed", "exponential"] = "fixed"
    retry_interval: Seconds = 30.0
    retry_factor: Annotated[float, Meta(ge=1, le=100)] = 2.0
    retry_max_interval: Seconds = 3600.0
    retry_jitter: Annotated[float, Meta(ge=0, le=1)] = 0.0
    max_attempts: Annotated[int, Meta(ge=1, le=1000)] = 5
    claim_ttl: Seconds = 30.0
    heartbeat_ttl: Seconds = 10.0
    crash_limit: Count = 3
    webhook_timeout: Seconds = 15.0
    webhook_allow_private: bool = False

    # Projections.
    projector_batch: Annotated[int, Meta(ge=1, le=50_000)] = 2000
    lease_ttl: Seconds = 5.0

    # Trust and keys.
    trust_poll: Seconds = 0.2
    trust_max_age: Seconds = 1.0
    keyring: Path | None = None
    key_passphrase: Annotated[str, Meta(extra={"secret": True})] | None = None

    # Logs.
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"

    @property
    def inbox_url(self) -> str:
        """Where workers reach the server's internal API."""
        return (self.server_url or f"https://127.0.0.1:{self.server_port}").rstrip("/")

    @property
    def keyring_path(self) -> Path:
        """The sealed keyring file; it never lies in Redis, MySQL or a data backup."""
        return self.keyring or self.data_dir / "keys" / "keyring"


SECRET_URLS = frozenset({"redis_url", "mysql_url"})


def load(
    file: Path | None = None, environ: Mapping[str, str] | None = None, **overrides: Any
) -> Settings:
    """Read `broker.toml` (or `file`), then the environment, then `overrides` (None means not given).

    Raises SettingsError naming the setting and what it takes.
    """
    environ = os.environ if environ is None else environ
    path = file or Path(environ.get(f"{PREFIX}CONFIG", "broker.toml"))
    values = _from_toml(path, required=file is not None or f"{PREFIX}CONFIG" in environ)
    values |= _from_environ(environ)
    values |= {name: value for name, value in overrides.items() if value is not None}
    known = {field.name for field in msgspec.structs.fields(Settings)}
    for name in values:
        if name not in known:
            raise SettingsError(f"{name!r} is not a setting. Known: {', '.join(sorted(known))}.")
    try:
        return msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(_explain(str(error))) from None


def shown(settings: Settings) -> dict[str, Any]:
    """The effective settings with secrets hidden, fit to print."""
    out: dict[str, Any] = {}
    for field in msgspec.structs.fields(Settings):
        value = getattr(settings, field.name)
        if isinstance(value, Path):
            value = str(value)
        elif field.name in SECRET_URLS and value:
            value = _hide_password(value)
        elif field.name == "key_passphrase" and value:
            value = "(set)"
        out[field.name] = value
    return out


def _from_toml(path: Path, *, required: bool) -> dict[str, Any]:
    if not path.exists():
        if required:
            raise SettingsError(f"The settings file {path} does not exist.")
        return {}
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SettingsError(f"{path}: {error}") from None
    flat: dict[str, Any] = {}
    for name, value in tables.items():
        if isinstance(value, dict):
            flat |= {f"{name}_{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat


def _from_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    found = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in environ.items()
        if name.startswith(PREFIX) and value != ""
    }
    found.pop("config", None)
    return found


def _explain(text: str) -> str:
    """msgspec says `Expected … - at `$.name``; say it with the name in front."""
    reason, _, where = text.partition(" - at `$.")
    return f"{where.rstrip('`')}: {reason}" if where else text


def _hide_password(url: str) -> str:
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{host}"))
