"""Which processes `up` runs, each with its own settings, ports and health page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from broker.embedded.ports import Claim
from broker.embedded.probe import Target, reachable
from broker.embedded.valkey import free_port
from broker.settings import Settings

# The order of starting; stopping goes the other way, except that the gateway goes first.
ROLES = ("server", "projector", "worker", "portal", "gateway")
INSPECTING = frozenset({"server", "projector", "portal"})
"""What runs on a copy that is only looked at."""


class Planned(NamedTuple):
    """One process: `name` is `role` or, where several run, `role-1`, `role-2`, …"""

    role: str
    name: str
    settings: Settings
    target: Target
    environ: Mapping[str, str] = MappingProxyType({})


def with_ports(settings: Settings) -> Settings:
    """`settings` with a free port for each that is 0, so that others can be told of it."""
    fields = (
        "gateway_port",
        "server_port",
        "portal_port",
        "worker_metrics_port",
        "projector_metrics_port",
    )
    chosen = {name: free_port() for name in fields if getattr(settings, name) == 0}
    return msgspec.structs.replace(settings, **chosen)


def claims(settings: Settings) -> list[Claim]:
    """Every port that the processes of `plan` will listen on."""
    metrics = settings.metrics_host
    always = [
        Claim("server_port", settings.server_host, settings.server_port),
        Claim("portal_port", settings.portal_host, settings.portal_port),
        Claim("projector_metrics_port", metrics, settings.projector_metrics_port),
    ]
    if settings.inspection:
        return always
    return [
        *always,
        Claim("gateway_port", settings.gateway_host, settings.gateway_port),
        *(Claim("worker_metrics_port", metrics, port) for port in _worker_ports(settings)),
    ]


def plan(settings: Settings) -> list[Planned]:
    """The processes in the order in which they are started."""
    ca = settings.certs_dir / "ca.crt"
    server = Target(reachable(settings.server_host), settings.server_port, "/health", ca)
    gateway = Target(reachable(settings.gateway_host), settings.gateway_port, "/api/v1/health", ca)
    pages = Target(
        reachable(settings.portal_host),
        settings.portal_port,
        "/health",
        # A certificate of its own is what it has to show, whoever signed that.
        None if settings.portal_plain else settings.portal_certificate or ca,
    )
    metrics = reachable(settings.metrics_host)
    projector = Target(metrics, settings.projector_metrics_port, "/health", metrics="/metrics")
    workers = [
        Planned(
            "worker",
            _name("worker", number, settings.workers),
            msgspec.structs.replace(settings, worker_metrics_port=port),
            Target(metrics, port, "/health"),
        )
        for number, port in enumerate(_worker_ports(settings), 1)
    ]
    # Several gateways answer on one port: whichever is asked for metrics must speak for all.
    shared = {}
    if settings.gateways > 1:
        shared = {"PROMETHEUS_MULTIPROC_DIR": str((settings.data_dir / "run" / "gateway-metrics").absolute())}
    gateways = [
        Planned("gateway", _name("gateway", number, settings.gateways), settings, gateway, shared)
        for number in range(1, settings.gateways + 1)
    ]
    everything = [
        Planned("server", "server", settings, server),
        Planned("projector", "projector", settings, projector),
        *workers,
        Planned("portal", "portal", settings, pages),
        *gateways,
    ]
    return [one for one in everything if not settings.inspection or one.role in INSPECTING]


def _worker_ports(settings: Settings) -> list[int]:
    """The first worker's is the setting, the others' are the next ports that no role here uses."""
    taken = {
        settings.gateway_port,
        settings.server_port,
        settings.portal_port,
        settings.projector_metrics_port,
    }
    return [
        settings.worker_metrics_port,
        *_following(settings.worker_metrics_port, taken, settings.workers - 1),
    ]


def _following(port: int, taken: set[int], count: int) -> Iterator[int]:
    while count > 0:
        port += 1
        if port not in taken:
            count -= 1
            yield port


def _name(role: str, number: int, of: int) -> str:
    return role if of == 1 else f"{role}-{number}"
