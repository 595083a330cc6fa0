"""`doctor`: what is wrong and what to do."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

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

    findings = asyncio.run(checks.run(settings))
    if as_json:
        print_json({"ok": not checks.failed(findings), "checks": [one._asdict() for one in findings]})
    else:
        for one in findings:
            _show(one)
    sys.exit(1 if checks.failed(findings) else 0)


def _show(finding: Any) -> None:
    mark, colour = MARKS[finding.status]
    click.echo(f"{click.style(mark, fg=colour)} {finding.name:<14} {finding.detail}")
    if finding.fix:
        click.echo(f"  {'':<14} → {finding.fix}")
