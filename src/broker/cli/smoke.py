"""`smoke`: whether an installation works after it was deployed, however its processes are run."""

from __future__ import annotations

import asyncio
import functools
import os
import tempfile
from pathlib import Path
from time import perf_counter

import click

from broker.cli import opening, services
from broker.cli.checks import Finding
from broker.cli.common import json_option, with_settings
from broker.cli.doctor import tell
from broker.cli.installation import MAKE, certificates, judge, mysql, redis
from broker.embedded import probe
from broker.embedded.probe import Target
from broker.events import probe as log_probe
from broker.settings import Settings

JOURNAL = Path("/run/systemd/journal/stdout")


@click.command()
@json_option
@with_settings
def smoke(settings: Settings, *, as_json: bool) -> None:
    """Nine checks of a running installation. Exits 1 if any failed.

    Services (of `broker up`, systemd or Windows), MySQL, Redis, the health of server, gateway and portal, the
    worker's metrics, certificates, and where logs go.
    """
    given = functools.partial
    targets = services.targets(settings)
    findings = asyncio.run(
        judge(
            {
                "Services": given(services.check, settings, targets),
                "MySQL": given(mysql, settings),
                "Redis": given(log, settings),
                "Server health": given(health, targets, "server"),
                "Gateway health": given(health, targets, "gateway"),
                "Portal health": given(health, targets, "portal"),
                "Worker metrics": given(metrics, targets),
                "Certificates": given(certificates, settings),
                "Logs": given(logs, settings),
            }
        )
    )
    tell(findings, as_json=as_json, counted=True)


async def log(settings: Settings) -> Finding:
    """Redis answers, is durable, and holds the log that the settings name."""
    found = await redis(settings)
    if found.status in {"failed", "skipped"}:
        return found
    async with opening.log(settings) as (client, keys):
        started = perf_counter()
        await log_probe.ping(client)
        took = (perf_counter() - started) * 1000
        detail = f"log {settings.log_name} of {len(keys.partitions)} partitions, PING in {took:.1f} ms"
    return found._replace(detail=f"{detail}; {found.detail}")


async def health(targets: dict[str, Target], role: str) -> Finding:
    """The role's health page answers 200 to a client that trusts our CA."""
    target = targets[role]
    shown = f"{target.url}{target.path}"
    if target.ca is not None and not target.ca.is_file():
        return Finding("", "failed", f"{shown} cannot be asked: {target.ca} is missing", MAKE)
    found = await probe.health(target, timeout=10)
    if not found.ok:
        fix = f"start it (`broker {role}`, or its service), and read what it logs"
        return Finding("", "failed", f"{shown}: {found.detail}", fix)
    return Finding("", "ok", f"{shown} answers 200")


async def metrics(targets: dict[str, Target]) -> Finding:
    """Every worker shows its metrics."""
    shown = []
    for name, target in targets.items():
        if name.partition("-")[0] != "worker":
            continue
        url = f"{target.url}/metrics"
        try:
            async with asyncio.timeout(10):
                status, body = await probe.get(target, "/metrics")
        except (OSError, ValueError) as error:
            fix = "start it (`broker worker`, or its service), or correct BROKER_WORKER_METRICS_PORT"
            return Finding("", "failed", f"{url}: {str(error) or 'no answer'}", fix)
        if status != 200 or b"broker_delivery_attempts_total" not in body:
            fix = "something else answers there: correct BROKER_WORKER_METRICS_PORT"
            return Finding("", "failed", f"{url} answers {status} without the worker's metrics", fix)
        shown.append(url)
    return Finding("", "ok", ", ".join(shown))


async def logs(settings: Settings) -> Finding:
    """The directory of the log files can be written to; under systemd the journal takes the lines."""
    if await services.systemd():
        there = JOURNAL.exists()
        fix = "start systemd-journald.service"
        return Finding("", "ok", "in the journal") if there else Finding("", "failed", "no journal", fix)
    directory = settings.data_dir / "log"
    if not directory.is_dir():
        fix = f"make it for the user that runs the broker: {directory}"
        return Finding("", "failed", f"{directory} is missing", fix)
    try:
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".smoke-"):
            pass
    except OSError as error:
        fix = f"let {_user()} write there, and see that its disk has room"
        return Finding("", "failed", f"{directory}: {error.strerror}", fix)
    return Finding("", "ok", f"{directory} can be written to")


def _user() -> str:
    return os.environ.get("USER") or os.environ.get("USERNAME") or "this user"
