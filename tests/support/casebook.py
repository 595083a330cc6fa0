"""A pytest plugin: which cases a run is of, and what became of each test that shows one.

Outcomes go to `var/results/tests.json` for the readiness report, by test, with the source they were measured on.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import msgspec
import pytest

from broker.cli.readiness import evidence
from broker.cli.readiness.cases import SECTIONS, section
from broker.cli.readiness.evidence import Outcome

ROOT = Path(__file__).resolve().parents[2]
TAIL = 300


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--full`, and the sections of cases to run."""
    parser.addoption("--full", action="store_true", help="run load cases in their full length")
    parser.addoption(
        "--sections", help=f"only tests of cases of these, of {', '.join(one.name for one in SECTIONS)}"
    )
    parser.addoption("--quick", action="store_true", help="leave load and security cases out")


def cases_of(item: pytest.Item) -> list[str]:
    """The ids on a test's case marks."""
    return sorted({str(case) for mark in item.iter_markers("case") for case in mark.args})


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tell each test's cases to its reports, and leave out what was not asked for."""
    wanted = {name for name in (config.getoption("--sections") or "").split(",") if name}
    if unknown := wanted - {one.name for one in SECTIONS}:
        raise pytest.UsageError(f"--sections: there is no {', '.join(sorted(unknown))}")
    keep, leave = [], []
    for item in items:
        cases = cases_of(item)
        item.user_properties.append(("cases", cases))
        (keep if _asked_for(item, cases, wanted, quick=config.getoption("--quick")) else leave).append(item)
    if leave:
        config.hook.pytest_deselected(items=leave)
        items[:] = keep


def _asked_for(item: pytest.Item, cases: list[str], wanted: set[str], *, quick: bool) -> bool:
    sections = {section(case).name for case in cases}
    if wanted and not sections & wanted:
        return False
    if quick:
        return "load" not in item.path.parts and not (sections and sections <= {"load", "security"})
    return True


class Casebook:
    """Gathers the outcomes of a run, in the process that reports it."""

    def __init__(self) -> None:
        self.records: dict[str, Outcome] = {}
        self.source = evidence.source_digest(ROOT)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One phase of a test; its set-up and its tear-down may fail too."""
        cases = next((value for name, value in report.user_properties if name == "cases"), [])
        if not cases:
            return
        before = self.records.get(report.nodeid)
        if before is not None and before.outcome != "passed":
            return
        said = report.longreprtext[-TAIL:] if report.failed else ""
        self.records[report.nodeid] = Outcome(
            cases=cases,
            outcome=report.outcome,
            seconds=round(report.duration + (before.seconds if before else 0), 2),
            at=time.time(),
            source=self.source,
            said=said,
        )

    def pytest_sessionfinish(self) -> None:
        """Write what is known now over what was known before."""
        if not self.records or evidence.source_digest(ROOT) != self.source:
            # Changed while it ran: nobody can say what was tested.
            return
        path = evidence.results_file(ROOT)
        path.parent.mkdir(parents=True, exist_ok=True)
        results = evidence.read_results(ROOT)
        results.tests |= self.records
        # Two runs may end at once: each leaves a whole file.
        handle, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as content:
            content.write(msgspec.json.format(msgspec.json.encode(results)))
        Path(name).replace(path)


def pytest_configure(config: pytest.Config) -> None:
    """The workers of a spread run report to the process that spread it."""
    if not hasattr(config, "workerinput") and not config.getoption("collectonly"):
        config.pluginmanager.register(Casebook(), "casebook")
