"""A pytest plugin: which cases a run is of, and what became of each test that shows one.

Outcomes go to `var/results/tests.json` for the readiness report, by test, with the source they were measured on; now
and then while the tests run, so that a run that is ended early leaves what it had found.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import msgspec
import pytest

from broker.cli.readiness import evidence
from broker.cli.readiness.cases import FULL_LENGTH, REGRESSION, SECTIONS, section
from broker.cli.readiness.evidence import Outcome

ROOT = Path(__file__).resolve().parents[2]
TAIL = 300
KEEP_SECONDS = 20.0
FULL_TIMEOUT = 3600
"""Seconds for a test of a full run that sets no bound of its own: longer forms on slow machines take long."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--full`, and the sections of cases to run."""
    parser.addoption(
        "--full", action="store_true", help="load in its whole length, properties with all examples"
    )
    parser.addoption(
        "--sections", help=f"only tests of cases of these, of {', '.join(one.name for one in SECTIONS)}"
    )
    parser.addoption("--quick", action="store_true", help="leave load and security cases out")
    parser.addoption(
        "--missing",
        action="store_true",
        help="leave out tests of cases that passed on this very source before",
    )


def cases_of(item: pytest.Item) -> list[str]:
    """The ids on a test's case marks."""
    return sorted({str(case) for mark in item.iter_markers("case") for case in mark.args})


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tell each test's cases to its reports, and leave out what was not asked for."""
    wanted = {name for name in (config.getoption("--sections") or "").split(",") if name}
    if unknown := wanted - {one.name for one in SECTIONS}:
        raise pytest.UsageError(f"--sections: there is no {', '.join(sorted(unknown))}")
    quick = config.getoption("--quick")
    passed = _passed(ROOT, full=config.getoption("--full")) if config.getoption("--missing") else set()
    keep, leave = [], []
    for item in items:
        cases = cases_of(item)
        item.user_properties.append(("cases", cases))
        asked = item.nodeid not in passed and _asked_for(item, cases, wanted, quick=quick)
        (keep if asked else leave).append(item)
        if config.getoption("--full") and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(FULL_TIMEOUT))
    if leave:
        config.hook.pytest_deselected(items=leave)
        items[:] = keep


def _asked_for(item: pytest.Item, cases: list[str], wanted: set[str], *, quick: bool) -> bool:
    sections = {section(case).name for case in cases if case not in REGRESSION}
    if wanted and not sections & wanted:
        return False
    if quick:
        return "load" not in item.path.parts and not (sections and sections <= {"load", "security"})
    return True


def _passed(root: Path, *, full: bool) -> set[str]:
    """Tests of cases that need not run again: passed on this source, and in full length where that is asked for."""
    source = evidence.source_digest(root)
    figures = evidence.load_figures(root, source)
    short = {case for case in FULL_LENGTH if not figures.get(case, {}).get("full")} if full else set()
    return {
        name
        for name, one in evidence.read_results(root).tests.items()
        if one.outcome == "passed" and one.source == source and not short & set(one.cases)
    }


def _said(report: pytest.TestReport) -> str:
    """What a failed test said, in short: the error itself where pytest names it, else the end of the text."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message)[:TAIL] if crash is not None else report.longreprtext[-TAIL:]


class Casebook:
    """Gathers the outcomes of a run, in the process that reports it."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self.records: dict[str, Outcome] = {}
        self.source = evidence.source_digest(root)
        self._ended: set[str] = set()
        self._kept_at = time.monotonic()
        self._changed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One phase of a test; its set-up and its tear-down may fail too."""
        cases = next((value for name, value in report.user_properties if name == "cases"), [])
        if not cases:
            return
        before = self.records.get(report.nodeid)
        if before is not None and before.outcome != "passed":
            return
        said = _said(report) if report.failed else ""
        self.records[report.nodeid] = Outcome(
            cases=cases,
            outcome=report.outcome,
            seconds=round(report.duration + (before.seconds if before else 0), 2),
            at=time.time(),
            source=self.source,
            said=said,
        )
        if report.when == "teardown":
            self._ended.add(report.nodeid)
        if report.when == "teardown" and time.monotonic() - self._kept_at > KEEP_SECONDS:
            self._keep()

    def pytest_sessionfinish(self) -> None:
        """Keep the rest."""
        self._keep()

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say so where nothing counts."""
        if self._changed and self.records:
            terminalreporter.write_line(
                "The source changed while the tests ran: their outcomes are not kept for the report.",
                yellow=True,
            )

    def _keep(self) -> None:
        """Write what is known now over what was known before."""
        self._kept_at = time.monotonic()
        # Changed while it ran: nobody can say what was tested.
        self._changed = self._changed or evidence.source_digest(self.root) != self.source
        if not self.records or self._changed:
            return
        path = evidence.results_file(self.root)
        path.parent.mkdir(parents=True, exist_ok=True)
        results = evidence.read_results(self.root)
        # One that is under way has passed nothing yet.
        results.tests |= {
            name: one for name, one in self.records.items() if one.outcome != "passed" or name in self._ended
        }
        # Two runs may end at once: each leaves a whole file.
        handle, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as content:
            content.write(msgspec.json.format(msgspec.json.encode(results)))
        Path(name).replace(path)


def pytest_configure(config: pytest.Config) -> None:
    """The workers of a spread run report to the process that spread it."""
    if not hasattr(config, "workerinput") and not config.getoption("collectonly"):
        config.pluginmanager.register(Casebook(), "casebook")
