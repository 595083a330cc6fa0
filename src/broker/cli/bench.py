"""`./broker bench`: the benchmarks of the checkout, each a script of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

BENCHES = Path(__file__).resolve().parents[3] / "bench"
SUPPORT = {"filling", "loadgen"}


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("name", required=False)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def bench(name: str | None, options: tuple[str, ...]) -> None:
    """Run the benchmark NAME with OPTIONS (`broker bench e2e -- --help` shows them); without NAME, list all.

    Figures of different runs say little on a shared machine: compare the ratios of one run.
    """
    if not BENCHES.is_dir():
        raise click.ClickException("The benchmarks are in the source checkout; run `./broker bench` there.")
    known = {path.stem: path for path in sorted(BENCHES.glob("*.py")) if path.stem not in SUPPORT}
    if name is None:
        for each, path in known.items():
            click.echo(f"{each:10} {path.read_text('utf-8').split(chr(10), 1)[0].strip(chr(34))}")
        return
    if name not in known:
        raise click.UsageError(f"There is no benchmark {name!r}. Known: {', '.join(known)}.")
    sys.stdout.flush()
    sys.exit(subprocess.run((sys.executable, str(known[name]), *options), check=False).returncode)
