"""Run one role in the foreground, as production does and as `up` does for each of its processes."""

from __future__ import annotations

import sys
from typing import Any

import click

from broker.cli.common import settings_for, with_settings
from broker.settings import Settings


def _run(role: str, settings: Settings) -> None:
    """Run until a signal; exit with the role's code. Beside `up --inspect` it is for inspection, too."""
    import msgspec

    from broker.bootstrap import run_role
    from broker.cli import opening

    inspection = opening.for_inspection(settings)
    settings = msgspec.structs.replace(opening.resolved(settings), inspection=inspection)
    sys.exit(run_role(role, settings))


def _with(settings: Settings, **changes: Any) -> Settings:
    given = {name: value for name, value in changes.items() if value is not None}
    return settings_for(**_paths(settings), **given) if given else settings


def _paths(settings: Settings) -> dict[str, Any]:
    return {"data_dir": settings.data_dir, "certs_dir": settings.certs_dir}


@click.command()
@click.option("--port", type=int, help="The setting gateway_port.")
@with_settings
def gateway(settings: Settings, port: int | None) -> None:
    """Accept messages over mTLS and append them to the log."""
    _run("gateway", _with(settings, gateway_port=port))


@click.command()
@click.option("--port", type=int, help="The setting server_port.")
@with_settings
def server(settings: Settings, port: int | None) -> None:
    """Serve the internal API and the JSON APIs."""
    _run("server", _with(settings, server_port=port))


@click.command()
@click.option("--port", type=int, help="The setting portal_port.")
@with_settings
def portal(settings: Settings, port: int | None) -> None:
    """Serve the pages for readers, admins and auditors."""
    _run("portal", _with(settings, portal_port=port))


@click.command()
@click.option("--concurrency", type=int, help="The setting worker_concurrency.")
@click.option("--metrics-port", type=int, help="The setting worker_metrics_port.")
@with_settings
def worker(settings: Settings, concurrency: int | None, metrics_port: int | None) -> None:
    """Deliver messages and retry them."""
    _run("worker", _with(settings, worker_concurrency=concurrency, worker_metrics_port=metrics_port))


@click.command()
@click.option("--metrics-port", type=int, help="The setting projector_metrics_port.")
@with_settings
def projector(settings: Settings, metrics_port: int | None) -> None:
    """Build the read models from the log."""
    _run("projector", _with(settings, projector_metrics_port=metrics_port))
