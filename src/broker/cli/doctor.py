"""`doctor`: what is wrong and what to do."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, NoReturn

import click

from broker.cli.common import json_option, print_json, with_settings
from broker.settings import Settings

MARKS = {
    "ok": ("✓", "green"),
    "warning": ("!", "yellow"),
    "failed": ("✗", "red"),
    "skipped": ("–", "bright_black"),
}


@click.command()
@json_option
@with_settings
def doctor(settings: Settings, *, as_json: bool) -> None:
    """Check Python, ports, Redis, MySQL, certificates, keys, disk. Exits 1 if anything failed."""
    from broker.cli import checks

    tell(asyncio.run(checks.run(settings)), as_json=as_json)


def tell(findings: list[Any], *, as_json: bool, counted: bool = False) -> NoReturn:
    """Show findings, for people or as JSON, and exit: 1 if any failed. `counted` adds how many passed."""
    from broker.cli import checks

    failed = checks.failed(findings)
    if as_json:
        print_json({"ok": not failed, "checks": [one._asdict() for one in findings]})
    else:
        for one in findings:
            _show(one)
        if counted:
            passed = sum(one.status != "failed" for one in findings)
            click.echo(f"{passed} of {len(findings)} checks passed.")
    sys.exit(1 if failed else 0)


def _show(finding: Any) -> None:
    mark, colour = MARKS[finding.status]
    click.echo(f"{click.style(mark, fg=colour)} {finding.name:<18} {finding.detail}")
    if finding.fix:
        click.echo(f"  {'':<18} → {finding.fix}")
