"""Everything that can be set, with bounds and defaults, and what follows from it."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

PREFIX = "BROKER_"

Port = Annotated[int, Meta(ge=0, le=65535, description="a TCP port, 0 for any free one")]
YEAR = 365 * 24 * 3600
Seconds = Annotated[float, Meta(gt=0, le=YEAR, description="seconds, more than 0, at most a year")]
RedisUrl = Annotated[
    str, Meta(pattern="^(rediss?|unix)://", description="a redis://, rediss:// or unix:// address")
]
MysqlUrl = Annotated[
    str,
    Meta(
        pattern="^mysql(\\+[a-z]+)?://[^/]*/[^/?]+",
        description="a mysql://user:password@host:port/database address",
    ),
]
WebUrl = Annotated[
    str,
    Meta(
        pattern=r"^(https://|http://(localhost|127\.0\.0\.1|\[::1\])(:|/|$))[^\s?#@]*$",
        description="an https:// address, or an http:// one of this machine, without query",
    ),
]
HttpsUrl = Annotated[str, Meta(pattern="^https://", description="an https:// address")]
OtlpUrl = Annotated[
    str, Meta(pattern=r"^https?://[^\s@?#]+$", description="an http:// or https:// address, without query")
]
ArchiveUrl = Annotated[
    str, Meta(min_length=1, description="a directory, or an address such as s3://bucket/folder")
]
LogName = Annotated[
    str, Meta(pattern="^[a-z0-9-]{1,32}$", description="1 to 32 of lower-case letters, digits and hyphens")
]
Count = Annotated[int, Meta(ge=1)]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that can be set. Times are in seconds, sizes in bytes unless the name says otherwise."""

    # Where things lie.
    data_dir: Path = Path("var")
    certs_dir: Path = Path("certs")

    # Look at a copy: no gateway, no worker, nothing goes out.
    inspection: bool = False

    # The log. Without `redis_url` the embedded Valkey of `data_dir` is used.
    redis_url: RedisUrl | None = None
    log_name: LogName = "broker"
    partitions: Annotated[int, Meta(ge=1, le=256)] = 4
    allow_unsafe_redis: bool = False
    wait_replicas: Annotated[int, Meta(ge=0, le=16)] = 0
    wait_timeout: Seconds = 1.0
    redis_timeout: Seconds = 5.0
    log_full_ratio: Annotated[float, Meta(gt=0, le=1)] = 0.9
    disk_free_min_mb: Annotated[int, Meta(ge=0)] = 256
    embedded_maxmemory_mb: Annotated[int, Meta(ge=16, le=1 << 24)] = 2048
    idempotency_hours: Annotated[int, Meta(ge=1, le=24 * 30)] = 24
    outcomes_kept: Annotated[float, Meta(ge=60, le=YEAR, description="seconds from 60 to a year")] = 172800.0

    # Read models. Without `mysql_url` the embedded MariaDB of `data_dir` is used.
    mysql_url: MysqlUrl | None = None
    mysql_pool: Annotated[int, Meta(ge=1, le=256)] = 8

    # The archive, and how much history stays in Redis besides.
    archive_url: ArchiveUrl | None = None
    client_keys_url: ArchiveUrl | None = None
    archive_segment_mb: Annotated[int, Meta(ge=1, le=256)] = 16
    archive_segment_seconds: Seconds = 300.0
    stream_history: Annotated[
        float, Meta(ge=0, le=YEAR, description="seconds from 0 to a year, 0 for no more than needed")
    ] = 3600.0

    # Roles.
    gateway_host: str = "127.0.0.1"
    gateway_port: Port = 8001
    gateways: Annotated[int, Meta(ge=1, le=64)] = 1
    gateway_in_flight: Count = 4096
    rate_limit_per_second: Annotated[
        float, Meta(ge=0, le=1_000_000, description="messages a second, 0 for no limit")
    ] = 0.0
    rate_limit_per_address: Annotated[
        float, Meta(ge=0, le=1_000_000, description="requests a second, 0 for no limit")
    ] = 0.0
    server_host: str = "127.0.0.1"
    server_port: Port = 8000
    server_url: HttpsUrl | None = None
    portal_host: str = "127.0.0.1"
    portal_port: Port = 8080
    portal_session: Seconds = 1800.0
    portal_certificate: Path | None = None
    portal_key: Path | None = None
    trusted_proxies: Annotated[
        str, Meta(description="IP addresses and networks, separated by commas, or nothing")
    ] = ""
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
    webhook_ca_file: Path | None = None

    # Projections.
    projector_batch: Annotated[int, Meta(ge=1, le=50_000)] = 2000
    lease_ttl: Seconds = 5.0

    # Trust and keys.
    trust_poll: Seconds = 0.2
    trust_max_age: Seconds = 1.0
    keyring: Path | None = None
    key_passphrase: str | None = None
    ca_key: Path | None = None
    crl_hours: Annotated[int, Meta(ge=1, le=24 * 90)] = 24
    certificate_warning_days: Annotated[int, Meta(ge=1, le=825)] = 30

    # People. After `login_attempts` from one address within `login_window` an account waits there.
    session_days: Annotated[int, Meta(ge=1, le=365)] = 14
    login_attempts: Annotated[int, Meta(ge=1, le=1000)] = 5
    login_window: Seconds = 900.0

    # Single sign-on, where there is an issuer.
    oidc_issuer: WebUrl | None = None
    oidc_client_id: Annotated[str, Meta(min_length=1, max_length=512)] | None = None
    oidc_client_secret: Annotated[str, Meta(min_length=1, max_length=2048)] | None = None
    oidc_redirect_url: HttpsUrl | None = None
    portal_oidc_redirect_url: WebUrl | None = None
    oidc_ca_file: Path | None = None

    # Logs and traces.
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    otlp_url: OtlpUrl | None = None
    trace_ratio: Annotated[float, Meta(ge=0, le=1)] = 1.0

    @property
    def inbox_url(self) -> str:
        """Where workers reach the server's internal API."""
        return (self.server_url or f"https://127.0.0.1:{self.server_port}").rstrip("/")

    @property
    def outcomes_kept_ms(self) -> int:
        """How long outcomes stay in Redis; whoever writes one there is given this."""
        return round(self.outcomes_kept * 1000)

    @property
    def idempotency_ms(self) -> int:
        """How long idempotency keys are remembered."""
        return self.idempotency_hours * 3_600_000

    @property
    def portal_plain(self) -> bool:
        """Whether the portal speaks plain HTTP: nobody but this machine hears it."""
        if self.portal_host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.portal_host).is_loopback
        except ValueError:
            return False

    @property
    def keyring_path(self) -> Path:
        """The sealed keyring file; it never lies in Redis, MySQL or a data backup."""
        return self.keyring or self.data_dir / "keys" / "keyring"

    @property
    def token_keys_path(self) -> Path:
        """The sealed keys that sign access tokens."""
        return self.data_dir / "keys" / "token-keys"

    @property
    def ca_key_path(self) -> Path:
        """The certificate authority's key. A server without it issues nothing and signs no list."""
        return self.ca_key or self.certs_dir / "ca.key"


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def networks(text: str) -> list[str]:
    """The addresses and networks of such a setting."""
    return [part.strip() for part in text.split(",") if part.strip()]
