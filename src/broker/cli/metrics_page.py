"""The text of `docs/metrics.md`: every metric as the processes themselves declare it."""

from __future__ import annotations

from typing import Any, Final

HEAD: Final = """# Metrics

In Prometheus' text format. Gateway and server show theirs at `/metrics` of their own ports to any
valid client certificate; where `metrics_public` is set to anybody, and the portal does so, too.
Worker and projector have ports for it, `worker_metrics_port` and `projector_metrics_port`. Scrape
and alert rules are in [ops/prometheus](../ops/prometheus/), a dashboard in
[ops/grafana](../ops/grafana/). Histograms have `_bucket`, `_sum` and `_count`.

This page is written by `python -m broker.cli.reference`.
"""

GROUPS: Final = (
    (
        "Requests",
        ("broker_http_", "broker_tls_", "broker_certificates_", "broker_rate_"),
        "gateway, server and portal",
    ),
    ("The log", ("broker_log_",), "gateway, server, portal and worker"),
    ("Delivery", ("broker_delivery_",), "worker"),
    ("Read models", ("broker_projection_",), "projector"),
    ("Archive and trimming", ("broker_archive_", "broker_trim_"), "projector"),
    ("Signed digests", ("broker_digest_",), "projector"),
    ("Backups", ("broker_backup_",), "projector"),
    ("Traces", ("broker_trace_",), "every role, where a collector is set"),
)


def text() -> str:
    """The whole page."""
    parts = [HEAD]
    found = declared()
    for title, prefixes, roles in GROUPS:
        parts.append(
            f"\n## {title}\n\nOf {roles}.\n\n| metric | type | labels | what it says |\n|---|---|---|---|\n"
        )
        for name in sorted(name for name in found if name.startswith(prefixes)):
            kind, labels, meaning = found.pop(name)
            parts.append(f"| `{name}` | {kind} | {', '.join(f'`{one}`' for one in labels)} | {meaning} |\n")
    if found:
        raise ValueError(f"metrics of no group: {', '.join(sorted(found))}")
    return "".join(parts)


def declared() -> dict[str, tuple[str, tuple[str, ...], str]]:
    """Type, labels and meaning of each metric by its name; makes them all exist in this process."""
    from prometheus_client import REGISTRY

    _declare()
    collectors: dict[str, Any] = REGISTRY._names_to_collectors  # noqa: SLF001 - labels show nowhere else
    found = {}
    for family in REGISTRY.collect():
        if family.name.startswith("broker_"):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = tuple(collectors[family.name]._labelnames)  # noqa: SLF001
            found[name] = (family.type, labels, family.documentation)
    return found


def _declare() -> None:
    """What the processes make when they start, and what they make when something happens first."""
    from broker.events.durability import METRICS
    from broker.services.delivery import metrics as delivery
    from broker.services.projector import backups, digesting
    from broker.services.projector import metrics as projector
    from broker.services.server.admin.certificates_expiry import gauge as expiring
    from broker.web import metrics, rate_limit

    async def nothing(*_: object) -> None:
        return None

    metrics.RequestMetrics(nothing, "gateway")
    metrics.refused("bad_request")
    metrics.handshake_failed("closed")
    rate_limit.refused("address")
    for name, meaning in METRICS.items():
        metrics.gauge(name, meaning, mode="livemax")
    delivery.declare(["inbox"], ["0"])
    projector.observe_batch("0", 1, 0.0)
    projector.Exporter()
    projector.ArchiveExporter()
    digesting.Metrics()
    backups.Metrics()
    metrics.spans("sent", 0)
    expiring()
