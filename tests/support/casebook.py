"""A pytest plugin: which cases a run is of, which tests there are, and what became of each.

Outcomes go to `var/results/tests.json` for the readiness report, by test, with the source they were measured on; now
and then while the tests run, so that a run that is ended early leaves what it had found. Which tests there are goes
to `var/results/collected.json`: a run that looks through the whole of tests/ knows it, whatever it then leaves out; a
run of some files or directories knows only its own.
"""

from __future__ import annotations

import time
from pathlib import Path, PurePosixPath

import pytest

from broker.cli.readiness import defects, evidence
from broker.cli.readiness.cases import FULL_LENGTH, REGRESSION, SECTIONS, section
from broker.cli.readiness.evidence import Collected, Outcome

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
        help="leave out tests that passed on this very source before; with --full, load that passed in full",
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
        if one.outcome == "passed"
        and one.source == source
        and not short & set(one.cases)
        and (one.full or not full or not any(case.startswith("TC-L-") for case in one.cases))
    }


def _looks_through_all(config: pytest.Config, root: Path) -> bool:
    """Whether all tests there are get collected: no file is chosen or left out. Tests are left out only later."""
    here = config.invocation_params.dir
    inside = any((here / argument).resolve() in {root, root / "tests"} for argument in config.args)
    less = any(config.getoption(name, None) for name in ("ignore", "ignore_glob", "lf"))
    # `-o python_files=…` looks for others; pytest gives its own options of strictness that form.
    other = any(not one.startswith("strict_") for one in config.getoption("override_ini") or ())
    return inside and not less and not other


class Collecting:
    """Keeps which tests there are, in the process that collects them; of several the first does."""

    def __init__(self, root: Path, source: str) -> None:
        self.root = root
        self.source = source

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(
        self, session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Before anything is left out."""
        tests = {item.nodeid: cases_of(item) for item in items}
        # A file that could not be read has tests that nobody knows.
        self.keep(tests, whole=_looks_through_all(config, self.root) and not session.testsfailed)

    def keep(self, tests: dict[str, list[str]], *, whole: bool) -> None:
        """What the whole of tests/ has takes the place of what was known; a part of it only adds to other parts."""
        if evidence.source_digest(self.root) != self.source:
            return
        known = evidence.read_collected(self.root, self.source)
        if whole:
            known = Collected(self.source, whole=True, tests=tests)
        elif not known.whole:
            known = Collected(self.source, tests=known.tests | tests)
        evidence.write(evidence.collected_file(self.root), known)


def _said(report: pytest.TestReport | pytest.CollectReport) -> str:
    """What a failed test said, in short: the error itself where pytest names it, else the end of the text."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message)[:TAIL] if crash is not None else report.longreprtext[-TAIL:]


class Casebook:
    """Gathers the outcomes of a run, in the process that reports it."""

    def __init__(self, root: Path, *, full: bool = False) -> None:
        self.root = root
        self.full = full
        self.records: dict[str, Outcome] = {}
        self.source = evidence.source_digest(root)
        self._ended: set[str] = set()
        self._kept_at = time.monotonic()
        self._changed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One phase of a test; its set-up and its tear-down may fail too."""
        before = self.records.get(report.nodeid)
        if before is not None and before.outcome != "passed":
            return
        said = _said(report) if report.failed else ""
        self.records[report.nodeid] = Outcome(
            cases=self._cases(report),
            outcome=report.outcome,
            seconds=round(report.duration + (before.seconds if before else 0), 2),
            at=time.time(),
            source=self.source,
            said=said,
            full=self.full,
        )
        if report.when == "teardown":
            self._ended.add(report.nodeid)
        if report.when == "teardown" and time.monotonic() - self._kept_at > KEEP_SECONDS:
            self._keep()

    def _cases(self, report: pytest.TestReport) -> list[str]:
        """As the test told; of one that took its process with it, as it was collected."""
        told: list[str] | None = next(
            (value for name, value in report.user_properties if name == "cases"), None
        )
        if told is not None:
            return told
        return evidence.read_collected(self.root, self.source).tests.get(report.nodeid, [])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file whose tests could not be collected failed as one; one that leaves itself out is skipped as one."""
        if report.outcome != "passed":
            said = _said(report) if report.failed else ""
            self.records[report.nodeid] = Outcome([], report.outcome, 0, time.time(), self.source, said)

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
        results = evidence.read_results(self.root)
        # Of another source no more is shown than which case's tests are old.
        tests = {name: one for name, one in results.tests.items() if one.source == self.source or one.cases}
        # A file or directory that could not be collected before, and whose tests ran now.
        files = {PurePosixPath(name.partition("::")[0]) for name in self.records if "::" in name}
        read = {"", *(str(path) for file in files for path in (file, *file.parents))}
        tests = {name: one for name, one in tests.items() if not files or name not in read}
        kept: dict[str, Outcome] = {}
        for name, one in self.records.items():
            # One that is under way has passed nothing yet.
            ended = one.outcome != "passed" or name in self._ended
            if ended and not _stays(tests.get(name), one):
                tests[name] = kept[name] = one
        results.tests = tests
        defects.note(self.root, kept)
        evidence.write(evidence.results_file(self.root), results)


def _stays(before: Outcome | None, now: Outcome) -> bool:
    """A full run's outcome stays when a short run of the same source passes: that shows less, and mends nothing."""
    if before is None or before.source != now.source:
        return False
    return before.full and not now.full and now.outcome != "failed"


def pytest_configure(config: pytest.Config) -> None:
    """The workers of a spread run report to the process that spread it, and collect for it."""
    worker = getattr(config, "workerinput", {}).get("workerid")
    if config.getoption("collectonly") or worker not in {None, "gw0"}:
        return
    book = Casebook(ROOT, full=config.getoption("--full"))
    if worker is None:
        config.pluginmanager.register(book, "casebook")
    config.pluginmanager.register(Collecting(book.root, book.source), "collecting")
