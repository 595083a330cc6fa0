"""`./broker test`: lint, format, types, then the test suites with pytest's summary at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import click

from broker.cli.readiness import defects, evidence
from broker.cli.readiness.cases import SECTIONS
from broker.cli.readiness.evidence import Linted

SECTION_NAMES = tuple(one.name for one in SECTIONS)
ROOT = Path(__file__).resolve().parents[3]
WORKERS = 3
TAIL = 300
LINT = tuple(
    zip(
        evidence.LINTERS,
        (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy", "--strict", "src")),
        strict=True,
    )
)


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--quick", is_flag=True, help="Leave the load and security cases out.")
@click.option("--full", is_flag=True, help="Load in its whole length, every example: 90 minutes in all.")
@click.option("--from", "ref", metavar="REF", help="With the suite `upgrade`: the release to upgrade from.")
@click.argument("suite", required=False)
@click.argument("pytest_args", nargs=-1, type=click.UNPROCESSED)
def test(
    suite: str | None, pytest_args: tuple[str, ...], *, quick: bool, full: bool, ref: str | None
) -> None:
    """Run the linters, the type checker and all tests; or SUITE.

    SUITE: `functional`, `integration`, `load`, `security` (the tests of the requirements' cases), `all`,
    `lint`, or one directory of tests/. What follows `--` goes to pytest: `./broker test cli -- -k append -x`.
    """
    if not (ROOT / "tests").is_dir():
        raise click.ClickException("The tests are in the source checkout; run `./broker test` there.")
    if suite is not None and suite.startswith("-"):
        # `./broker test -- -x`: no suite was named.
        pytest_args = (suite, *pytest_args)
        suite = None
    if ref is not None:
        if suite != "upgrade":
            raise click.UsageError("--from goes with the suite `upgrade`.")
        pytest_args = ("--from", ref, *pytest_args)
    # Tests see no settings but their own.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
    target = _target(suite) if suite != "lint" else None
    source = evidence.source_digest(ROOT)
    linting = _lint(environ) if suite in (None, "all", "lint") else {}
    if target is None:
        sys.exit(1 if _linted(linting, source) else 0)
    _servers()
    failed = _linted(linting, source)
    # Most tests wait for servers and processes: a few at a time take half as long, even on two cores.
    # Load by itself, or it measures the others; in a full run its hour at one message a second need not be,
    # and what comes after the hour is alone (tests/support/spreading.py).
    alone = suite == "load" or (bool(pytest_args) and not full)
    # In our order (tests/conftest.py), not by how many tests a file has: few of them may take long.
    spread = () if alone else ("-n", str(WORKERS), "--dist", "loadfile", "--no-loadscope-reorder")
    chosen = (*(("--quick",) if quick else ()), *(("--full",) if full else ()))
    if suite in SECTION_NAMES:
        chosen = (*chosen, "--sections", str(suite))
    code = _run(("pytest", str(target), *spread, *chosen, *pytest_args), environ)
    # Nothing is printed after pytest's summary; what failed before it was said before it.
    sys.exit(code or (1 if failed else 0))


def _lint(environ: dict[str, str]) -> dict[str, subprocess.Popen[str]]:
    """The checks by their names, at work while the tests' servers are installed."""
    return {
        name: subprocess.Popen(
            (sys.executable, "-m", *command),
            cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for name, command in LINT
    }  # fmt: skip


def _linted(linting: dict[str, subprocess.Popen[str]], source: str) -> list[str]:
    """The names of the checks that failed, after everything that each said; kept for the report."""
    failed, kept = [], {}
    for name, process in linting.items():
        click.echo(f"== {name}")
        said = process.communicate()[0]
        click.echo(said, nl=False)
        if process.returncode != 0:
            failed.append(name)
        kept[name] = Linted(
            source, process.returncode == 0, time.time(), said[-TAIL:] if name in failed else ""
        )
    # Changed while they looked: nobody can say at what.
    if kept and evidence.source_digest(ROOT) == source:
        evidence.write(evidence.linters_file(ROOT), evidence.read_linters(ROOT) | kept)
        defects.note(ROOT, kept)
    if failed:
        click.secho(f"Failed: {', '.join(failed)} (see above). The tests run all the same.", fg="red")
    click.echo("== pytest" if not failed else "")
    return failed


def _target(suite: str | None) -> Path:
    tests = ROOT / "tests"
    if suite is None or suite == "all" or suite in SECTION_NAMES:
        return tests
    known = sorted(path.name for path in tests.iterdir() if any(path.rglob("test_*.py")))
    if suite not in known:
        suites = ", ".join(dict.fromkeys(("lint", "all", *SECTION_NAMES, *known)))
        raise click.UsageError(f"There is no suite {suite!r}. Suites: {suites}.")
    return tests / suite


def _servers() -> None:
    """The tests run against real servers, and look at the portal with a real browser."""
    from broker.embedded.install import ensure_browser, ensure_helpers, ensure_mariadb

    ensure_mariadb(click.echo)
    ensure_browser(click.echo)
    ensure_helpers(click.echo)


def _run(command: tuple[str, ...], environ: dict[str, str]) -> int:
    sys.stdout.flush()
    return subprocess.run((sys.executable, "-m", *command), cwd=ROOT, env=environ, check=False).returncode
