"""`docs/settings.md`, written from the settings: `python -m broker.cli.settings_page`.

A setting that is missing here, or a page that is not this module's, fails the tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from broker.settings import Settings, shown, takes, variable

PAGE: Final = Path(__file__).resolve().parents[3] / "docs" / "settings.md"

MEANINGS: Final[dict[str, dict[str, str]]] = {
    "Places": {
        "data_dir": "Everything that is kept: embedded servers, keyring, logs, state",
        "certs_dir": "Authority, services' and clients' certificates; with `--data DIR` it is `DIR/certs`",
    },
    "Copies": {
        "inspection": "Only look at what is there, as `up --inspect` does: gateway and worker refuse to "
        "start, the internal API answers 503; nothing is archived, no hourly digest made",
    },
    "Log (Redis)": {
        "redis_url": "A Redis 7+ or Valkey of your own; not set: the embedded Valkey",
        "log_name": "Which log in that Redis; fixed once the log exists",
        "partitions": "Streams of message events; fixed once the log exists",
        "allow_unsafe_redis": "Start on a Redis that can lose acknowledged messages",
        "wait_replicas": "Replicas that must have an append before it is acknowledged",
        "wait_timeout": "How long to wait for those replicas; after that the answer is 503",
        "redis_timeout": "How long a command may take",
        "log_full_ratio": "Share of Redis' memory from which on the gateway answers 503 `log_full`",
        "disk_free_min_mb": "Free disk, in MB, below which the answer is 503 `log_full` (embedded Valkey)",
        "embedded_maxmemory_mb": "Memory of the embedded Valkey, in MB",
        "outcomes_kept": "How long Redis itself can tell how a message ended; MySQL always can. An id that a "
        "caller of the internal API chose may be no older, a day at most",
        "idempotency_hours": "How long an `Idempotency-Key` is remembered",
    },
    "Read models (MySQL)": {
        "mysql_url": "A MySQL 8 or MariaDB 10.6+ of your own; not set: the embedded MariaDB",
        "mysql_pool": "Connections of each gateway and server to the database, at most",
    },
    "Archive": {
        "archive_url": "Where history is kept for ever, the same for all projectors; not set: `archive` in "
        "`data_dir`. Buckets need the package of their scheme, such as s3fs",
        "client_keys_url": "Where copies of the clients' wrapped keys lie, outside Redis, with no part in "
        "the archive; not set: `client-keys` in `data_dir`, or `.client-keys` in `archive_url`",
        "archive_segment_mb": "A segment is closed once its events have this size, in MB, before compression",
        "archive_segment_seconds": "Or once its first event has waited this long; Redis keeps it until then",
        "stream_history": "History that stays in Redis though nothing needs it there, while memory allows",
    },
    "Gateway": {
        "gateway_host": "Where it listens",
        "gateway_port": "Its port",
        "gateways": "Processes that share the port",
        "gateway_in_flight": "Requests at once in a process; more get 503",
        "rate_limit_per_second": "Messages of each client certificate, over all gateways; more get 429",
        "rate_limit_per_address": "Requests from each address (IPv6: /64), over all gateways, servers and "
        "portals; the internal API is left out",
    },
    "Server and portal": {
        "server_host": "Where the server listens",
        "server_port": "Its port",
        "server_url": "Where workers reach it; not set: this machine, `server_port`",
        "session_days": "How long after signing in a session ends, however often its tokens are refreshed",
        "login_attempts": "Failed logins from one address within `login_window`, after which it waits",
        "login_window": "See `login_attempts`",
        "oidc_issuer": "Sign people in at this OpenID Connect provider too; accounts are found by e-mail",
        "oidc_client_id": "What the provider calls this installation",
        "oidc_client_secret": "Its secret there, best in the environment; not set: a public client",
        "oidc_redirect_url": "Where the provider leads browsers back to, as it is registered there; not set: "
        "`/portal/auth/oidc/callback` on `localhost`, `server_port`",
        "portal_oidc_redirect_url": "The same for the portal; not set: `/login/oidc/callback` on "
        "`localhost`, `portal_port`",
        "oidc_ca_file": "CA certificates (PEM) that the provider may have too, besides the system's",
        "portal_host": "Where the portal listens: plain HTTP on a loopback address, TLS on any other",
        "portal_port": "Its port",
        "trusted_proxies": "Reverse proxies before portal and server whose `X-Forwarded-For` is believed",
        "portal_certificate": "Certificate (PEM, with those between it and its CA) that browsers see where "
        "the portal speaks TLS, read at the start; not set: the server's",
        "portal_key": "Its key (PEM, without a passphrase)",
        "portal_session": "After this long without a request people sign in again",
    },
    "Connections and metrics": {
        "header_timeout": "For the headers of a request",
        "body_timeout": "For its body",
        "idle_timeout": "Until a silent connection is closed",
        "grace_period": "For finishing what is under way after SIGTERM",
        "metrics_host": "Where worker and projector show `/metrics` and `/health`",
        "metrics_public": "Show `/metrics` of gateway and server without a client certificate, and of "
        "the portal",
    },
    "Delivery": {
        "workers": "Worker processes that `up` runs",
        "worker_concurrency": "Messages in the hands of a worker at once",
        "worker_metrics_port": "Metrics of the first worker; others take the next free ones",
        "default_channel": "Channel of clients without a route of their own",
        "retry_schedule": "Equal waits, or growing ones",
        "retry_interval": "Wait before the first retry",
        "retry_factor": "How waits grow (`exponential`)",
        "retry_max_interval": "The longest wait",
        "retry_jitter": "Random share of each wait",
        "max_attempts": "Attempts in a delivery cycle, the first included",
        "claim_ttl": "After this long without renewal a message may be taken from its worker",
        "heartbeat_ttl": "After this long without a sign a worker counts as dead",
        "crash_limit": "Workers that a message may kill before it is parked",
        "webhook_timeout": "For a recipient's answer",
        "webhook_allow_private": "Let webhooks reach private and loopback addresses",
        "webhook_ca_file": "CA certificates (PEM) that webhooks may have too, besides the system's",
    },
    "Projections": {
        "projector_batch": "Events in a transaction, at most",
        "projector_metrics_port": "Its metrics and health",
        "lease_ttl": "After this long without renewal another projector takes a stream over",
    },
    "Trust and keys": {
        "trust_poll": "How often each process looks for revocations",
        "trust_max_age": "Without proof of being current for this long, nobody is let in (503)",
        "keyring": "The sealed keys; not set: `keys/keyring` in `data_dir`",
        "key_passphrase": "Seals keyring and CA key; from the first `up` on, best in the environment",
        "ca_key": "The authority's key; not set: `ca.key` in `certs_dir`. A server without it issues nothing",
        "crl_hours": "How long a revocation list is good for; it is signed anew after half of that",
        "certificate_warning_days": "How long before its end a certificate is listed, counted and logged",
    },
    "Process logs and traces": {
        "log_level": "What is written",
        "log_format": "Of roles run on their own; `up` always writes JSON lines",
        "otlp_url": "An OpenTelemetry collector that takes OTLP over HTTP, such as `http://localhost:4318`; "
        "not set: no traces",
        "trace_ratio": "Share of the messages that are traced",
    },
}

HEAD: Final = """# Settings

`broker.toml` in the checkout (or the file that `--config` or `BROKER_CONFIG` names), and environment
variables, which win. A table is a prefix, so these three are the same:

```toml
gateway_port = 9001
```

```toml
[gateway]
port = 9001
```

```sh
BROKER_GATEWAY_PORT=9001 ./broker config
```

An unknown or invalid setting stops the start with its name and what it takes. `./broker config` shows what is
in effect, secrets hidden. Times are in seconds. Two variables are no settings: `BROKER_DEBUG=1` adds the
traceback to an error, `BROKER_BACKUP_PASSPHRASE` seals the keys in backups.

This page is written by `python -m broker.cli.settings_page`.
"""


def text() -> str:
    """The whole page."""
    default = shown(Settings())
    parts = [HEAD]
    for title, names in MEANINGS.items():
        parts.append(
            f"\n## {title}\n\n| setting | default | takes | what it is | variable |\n|---|---|---|---|---|\n"
        )
        parts += [_row(name, default[name], meaning) for name, meaning in names.items()]
    return "".join(parts)


def undescribed() -> set[str]:
    """Settings without a meaning here, and meanings without a setting."""
    described = {name for names in MEANINGS.values() for name in names}
    return described ^ set(shown(Settings()))


def _row(name: str, default: Any, meaning: str) -> str:
    said = str(default).lower() if isinstance(default, bool) else default
    value = "" if said in (None, "") else f"`{said}`"
    return f"| `{name}` | {value} | {takes(name)} | {meaning} | `{variable(name)}` |\n"


if __name__ == "__main__":
    PAGE.write_text(text(), "utf-8")
