"""`./broker report`: the readiness report of this checkout, from what the suites left behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click
import msgspec

from broker.cli.common import UserPath, data_option

ROOT = Path(__file__).resolve().parents[3]


@click.command()
@click.option(
    "--out",
    type=UserPath(file_okay=False),
    help="Where report.html, report.md, graphs and logs go. Default: var/report of the checkout.",
)
@data_option
def report(data: Path | None, out: Path | None) -> None:
    """Write the readiness report, and say DEPLOY or DO NOT DEPLOY with every reason. Exits 1 for the latter.

    It is made of what `./broker test all --full` measured on this very source, and of `preflight` and
    `smoke`, which are asked now: of what runs at the data directory, or of the servers that the settings
    name. Where there is neither, it starts a system of its own in a temporary directory, asks that one, and
    stops it.
    """
    if not (ROOT / "tests").is_dir():
        raise click.ClickException("The tests are in the source checkout; run `./broker report` there.")
    from broker.cli.readiness import components, document, evidence, gate, installation
    from broker.cli.readiness import report as sections

    with installation.to_ask(data, click.echo) as asked:
        found = evidence.gather(ROOT, data=asked.data, environ=asked.environ, problem=asked.problem)
        seen = components.Seen() if asked.problem else asyncio.run(components.look(asked.settings()))
    found = msgspec.structs.replace(found, asked=asked.said, seen=seen)
    blocks = sections.blocks(found)
    directory = out or ROOT / "var" / "report"
    document.save(directory, blocks, sections.TITLE)
    reasons = gate.reasons(found)
    for reason in reasons:
        click.echo(f"- {reason}")
    click.secho(document.word(document.Verdict(not reasons)), bold=True, fg="red" if reasons else "green")
    click.echo(f"{directory / 'report.html'}")
    if reasons:
        raise SystemExit(1)
