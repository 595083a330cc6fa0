"""`preflight`: whether this machine can run the broker."""

from __future__ import annotations

import asyncio
import functools
import importlib.metadata
import os
import re
import sys
from pathlib import Path

import click

from broker.cli import checks
from broker.cli.checks import Finding
from broker.cli.common import json_option, with_settings
from broker.cli.doctor import tell
from broker.cli.installation import certificates, judge, mysql, redis
from broker.errors import StoreUnavailable
from broker.settings import Settings

TABLES = ("users", "clients", "messages", "audit_log", "alembic_version")
# Where a role's package is named otherwise.
PACKAGES = {"worker": "delivery"}


@click.command()
@json_option
@with_settings
def preflight(settings: Settings, *, as_json: bool) -> None:
    """Seven checks before the broker goes into production here. Exits 1 if any failed.

    Python, packages, MySQL, Redis, schema, certificates, and whether the installation is whole.
    """
    given = functools.partial
    findings = asyncio.run(
        judge(
            {
                "Python version": python,
                "Dependencies": dependencies,
                "MySQL connection": given(mysql, settings),
                "Redis connection": given(redis, settings),
                "Database schema": given(schema, settings),
                "Certificates": given(certificates, settings),
                "Project structure": given(structure, settings),
            }
        )
    )
    tell(findings, as_json=as_json, counted=True)


async def python() -> Finding:
    """The version that this installation asks for."""
    wanted = str(importlib.metadata.metadata("broker")["Requires-Python"] or "")
    least = tuple(int(number) for number in re.findall(r"\d+", wanted))
    found = checks.python()
    if sys.version_info[: len(least)] < least:
        return found._replace(
            status="failed",
            detail=f"{found.detail}; the broker needs {wanted}",
            fix="install that Python, remove .venv, and run ./broker again",
        )
    return found


async def dependencies() -> Finding:
    """Every package that this installation asks for."""
    return checks.dependencies()


async def schema(settings: Settings) -> Finding:
    """The tables are there, at the newest revision."""
    from broker.embedded.urls import resolve
    from broker.projections import schema as schemas
    from broker.projections.store import Store

    url = str(resolve(settings).mysql_url)
    store = Store(url)
    try:
        await store.ping()
    except StoreUnavailable:
        await store.close()
        return Finding("", "failed", "the database does not answer", "see the check of the connection")
    try:
        rows = await store.select(
            "SELECT table_name AS name FROM information_schema.tables WHERE table_schema = DATABASE()"
        )
    finally:
        await store.close()
    missing = sorted(set(TABLES) - {str(row["name"]) for row in rows})
    if missing:
        return Finding("", "failed", f"missing tables: {', '.join(missing)}", "run `broker migrate`")
    current, head = await asyncio.to_thread(schemas.revisions, url)
    if current != head:
        return Finding("", "failed", f"revision {current}, newest is {head}", "run `broker migrate`")
    return Finding("", "ok", f"{', '.join(TABLES)}; revision {head}")


async def structure(settings: Settings) -> Finding:
    """Every role's component, what they are made of, and a data directory that can be written to."""
    from broker.bootstrap import ROLES
    from broker.projections.schema import folder

    parts = [f"services/{PACKAGES.get(role, role)}" for role in ROLES]
    package = Path(__file__).resolve().parents[1]
    missing = [part for part in (*parts, "events/scripts") if not _inhabited(package / part)]
    if missing:
        fix = "install the broker again: files of it were removed"
        return Finding("", "failed", f"missing in {package}: {', '.join(missing)}", fix)
    migrations = folder()
    if not _writable(settings.data_dir):
        fix = "run this as the user that owns it, or choose another with --data or BROKER_DATA_DIR"
        return Finding("", "failed", f"{settings.data_dir} cannot be written to", fix)
    return Finding("", "ok", f"{', '.join(ROLES)}; migrations in {migrations}; data in {settings.data_dir}")


def _inhabited(directory: Path) -> bool:
    return any(path.suffix in {".py", ".lua"} for path in directory.glob("*"))


def _writable(directory: Path) -> bool:
    """The directory, or the nearest one above it in which it can be made."""
    place = directory.absolute()
    while not place.exists():
        place = place.parent
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)
