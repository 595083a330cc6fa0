"""What the suites left behind: outcomes by test, figures of the load cases, checks, the machine.

The suites write to `var/` of the checkout; only what was measured on the very source that lies there counts.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from broker.cli.readiness import machine
from broker.cli.readiness.cases import CASES, FULL_LENGTH, REGRESSION

SOURCES = ("src", "tests", "migrations", "schemas", "pyproject.toml", "requirements.lock")
Status = Literal["PASS", "FAIL", "NOT RUN", "SHORT FORM"]
CHECK_SECONDS = 120


class Outcome(msgspec.Struct, frozen=True):
    """One test's last run. `at`: seconds since the epoch; `source`: digest of what was tested."""

    cases: list[str]
    outcome: Literal["passed", "failed", "skipped"]
    seconds: float
    at: float
    source: str
    said: str = ""
    """The end of what it said when it failed."""


class Results(msgspec.Struct):
    """The file that the suites keep, by test id."""

    tests: dict[str, Outcome] = {}


class CaseResult(msgspec.Struct, frozen=True):
    """One case: FAIL when any of its tests failed, PASS when all ran and passed.

    SHORT FORM: they passed, but not in the length that the case asks for.
    """

    case: str
    title: str
    status: Status
    tests: dict[str, Outcome]
    stale: int = 0
    """How many of its tests were last run on another source."""


class Checks(msgspec.Struct, frozen=True):
    """What `preflight` or `smoke` said: name, whether it passed, detail; None where it could not be asked."""

    name: str
    checks: list[tuple[str, bool, str]] | None
    problem: str = ""

    @property
    def passed(self) -> int:
        """How many passed."""
        return sum(ok for _, ok, _ in self.checks or [])


class Evidence(msgspec.Struct, frozen=True):
    """All that a report is made of."""

    source: str
    cases: list[CaseResult]
    load: dict[str, dict[str, Any]]
    checks: list[Checks]
    environment: dict[str, str]
    at: float
    regression: list[CaseResult] = []


def results_file(root: Path) -> Path:
    """Where the suites keep their outcomes."""
    return root / "var" / "results" / "tests.json"


def load_directory(root: Path) -> Path:
    """Where the load cases keep their figures, one file a case."""
    return root / "var" / "load"


def source_digest(root: Path) -> str:
    """SHA-256 over names and contents of everything that is tested or tests, 16 hex characters of it."""
    digest = hashlib.sha256()
    for name in SOURCES:
        top = root / name
        files = sorted(top.rglob("*")) if top.is_dir() else [top]
        for path in files:
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc":
                digest.update(path.relative_to(root).as_posix().encode() + b"\0")
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def read_results(root: Path) -> Results:
    """The outcomes kept; none where there is no file yet."""
    path = results_file(root)
    return msgspec.json.decode(path.read_bytes(), type=Results) if path.exists() else Results()


def gather(root: Path, *, data: Path | None = None) -> Evidence:
    """Read what the suites left, and ask `preflight` and `smoke` of the installation at `data` now."""
    source = source_digest(root)
    tests, load = read_results(root).tests, load_figures(root, source)
    return Evidence(
        source=source,
        cases=case_results(tests, source, load),
        load=load,
        checks=[_ask("preflight", root, data), _ask("smoke", root, data)],
        environment=machine.environment(root),
        at=time.time(),
        regression=regression_results(tests, source),
    )


def case_results(
    tests: Mapping[str, Outcome], source: str, load: Mapping[str, Mapping[str, Any]]
) -> list[CaseResult]:
    """Every case with its tests on this source. Skipped tests and those of another source are no evidence.

    `load`: the figures of the load cases, which say in what length they ran.
    """
    found = [_case(case, title, tests, source) for case, title in CASES.items()]
    return [_short(one) if _cut(one, load) else one for one in found]


def regression_results(tests: Mapping[str, Outcome], source: str) -> list[CaseResult]:
    """As `case_results`, of what is asked for after a change of configuration."""
    return [_case(case, title, tests, source) for case, title in REGRESSION.items()]


def _cut(result: CaseResult, load: Mapping[str, Mapping[str, Any]]) -> bool:
    passed = result.status == "PASS"
    return passed and result.case in FULL_LENGTH and not load.get(result.case, {}).get("full")


def _short(result: CaseResult) -> CaseResult:
    return msgspec.structs.replace(result, status="SHORT FORM")


def _case(case: str, title: str, tests: Mapping[str, Outcome], source: str) -> CaseResult:
    named = {name: one for name, one in tests.items() if case in one.cases}
    current = {name: one for name, one in named.items() if one.source == source}
    outcomes = {one.outcome for one in current.values()}
    status: Status = "FAIL" if "failed" in outcomes else "PASS" if outcomes == {"passed"} else "NOT RUN"
    return CaseResult(case, title, status, current, len(named) - len(current))


def load_figures(root: Path, source: str) -> dict[str, dict[str, Any]]:
    """The load cases' figures that were measured on this source, by case."""
    found = {}
    for path in sorted(load_directory(root).glob("TC-L-*.json")):
        figures = json.loads(path.read_bytes())
        if figures.get("source") == source:
            found[figures["case"]] = figures
    return found


def _ask(command: str, root: Path, data: Path | None) -> Checks:
    where = () if data is None else ("--data", str(data))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "broker", command, "--json", *where],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=CHECK_SECONDS,
            check=False,
        )
        said = json.loads(done.stdout)["checks"]
    except (subprocess.TimeoutExpired, json.JSONDecodeError) as error:
        return Checks(command, None, f"`broker {command} --json` gave no answer ({type(error).__name__})")
    return Checks(command, [(one["name"], one["status"] == "ok", one["detail"]) for one in said])
