"""What the suites left behind: outcomes by test, figures of the load cases, checks, the machine.

The suites write to `var/` of the checkout; only what was measured on the very source that lies there counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from broker.cli.readiness import asking, components, failures, machine, pictures
from broker.cli.readiness.cases import CASES, FULL_LENGTH, REGRESSION
from broker.cli.readiness.failures import Failure

SOURCES: Final = (
    "src", "tests", "migrations", "schemas", "ops", "examples", "docs", "README.md", "broker",
    "pyproject.toml", "requirements.lock", "requirements-dev.lock",
)  # fmt: skip
LINTERS: Final = ("ruff check", "ruff format", "mypy --strict")
"""The checks that `./broker test` runs beside the tests."""
Status = Literal["PASS", "FAIL", "NOT RUN", "SHORT FORM"]


class Outcome(msgspec.Struct, frozen=True):
    """One test's last run. `at`: seconds since the epoch; `source`: digest of what was tested."""

    cases: list[str]
    outcome: Literal["passed", "failed", "skipped"]
    seconds: float
    at: float
    source: str
    said: str = ""
    """The end of what it said when it failed."""
    full: bool = False
    """Whether it ran in its whole length (`--full`)."""


class Results(msgspec.Struct):
    """The file that the suites keep, by test id."""

    tests: dict[str, Outcome] = {}


class Collected(msgspec.Struct, frozen=True):
    """The tests that there are on a source, whether they ran or not: each one's cases by its id.

    `whole`: every test there is; else no more than what some run of a part of them saw.
    """

    source: str
    whole: bool = False
    tests: dict[str, list[str]] = {}


class Linted(msgspec.Struct, frozen=True):
    """What a linter said of a source."""

    source: str
    ok: bool
    at: float
    said: str = ""


class Suite(msgspec.Struct, frozen=True):
    """The whole suite on this source: what there is, what became of it, what the linters said."""

    collected: Collected
    tests: dict[str, Outcome]
    linters: dict[str, Linted]

    @property
    def not_run(self) -> list[str]:
        """Tests that there are and that have no outcome; a skipped one has none."""
        ended = {name for name, one in self.tests.items() if one.outcome != "skipped"}
        return sorted({*self.collected.tests, *self.tests} - ended)


class CaseResult(msgspec.Struct, frozen=True):
    """One case: FAIL when any of its tests failed, PASS when all that there are ran and passed.

    NOT RUN: some did not run, or no run has seen which there are. SHORT FORM: they passed, but not in the
    length that the case asks for.
    """

    case: str
    title: str
    status: Status
    tests: dict[str, Outcome]
    stale: int = 0
    """How many of its tests were last run on another source."""
    marked: int = 0
    """How many tests show it, as far as it is known."""
    whole: bool = False
    """Whether that is known of all tests."""


class Checks(msgspec.Struct, frozen=True):
    """What `preflight` or `smoke` said: name, status, detail; None where it could not be asked.

    The status is `ok`, `warning` or `failed`; a warning does not fail, as for the command itself.
    """

    name: str
    checks: list[tuple[str, str, str]] | None
    problem: str = ""

    @property
    def passed(self) -> int:
        """How many did not fail."""
        return sum(status != "failed" for _, status, _ in self.checks or [])


class Evidence(msgspec.Struct, frozen=True):
    """All that a report is made of."""

    source: str
    cases: list[CaseResult]
    load: dict[str, dict[str, Any]]
    checks: list[Checks]
    environment: dict[str, str]
    suite: Suite
    at: float
    regression: list[CaseResult] = []
    asked: str = ""
    """Which installation the checks were asked of."""
    seen: components.Seen = components.Seen()
    """What that installation is made of."""
    measured: list[components.Measured] = []
    failures: dict[str, Failure] = {}
    """Every failure that the suites keep, by test or linter."""
    pictures: list[Path] = []
    """Screenshots that were taken of this source."""


def results_file(root: Path) -> Path:
    """Where the suites keep their outcomes."""
    return root / "var" / "results" / "tests.json"


def collected_file(root: Path) -> Path:
    """Where the suites keep which tests there are."""
    return root / "var" / "results" / "collected.json"


def linters_file(root: Path) -> Path:
    """Where `./broker test` keeps what the linters said."""
    return root / "var" / "results" / "linters.json"


def load_directory(root: Path) -> Path:
    """Where the load cases keep their figures, one file a case."""
    return root / "var" / "load"


def source_digest(root: Path) -> str:
    """SHA-256 over names and contents of everything that is tested or tests, 16 hex characters of it."""
    digest = hashlib.sha256()
    for path in source_files(root):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def source_files(root: Path) -> Iterator[Path]:
    """Everything that is tested or tests."""
    for name in SOURCES:
        top = root / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc":
                yield path


def read_results(root: Path) -> Results:
    """The outcomes kept; none where there is no file yet."""
    path = results_file(root)
    return msgspec.json.decode(path.read_bytes(), type=Results) if path.exists() else Results()


def read_collected(root: Path, source: str) -> Collected:
    """The tests that runs on this source have seen; none where there was no run."""
    path = collected_file(root)
    found = msgspec.json.decode(path.read_bytes(), type=Collected) if path.exists() else Collected(source)
    return found if found.source == source else Collected(source)


def read_linters(root: Path) -> dict[str, Linted]:
    """What each linter said last."""
    path = linters_file(root)
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Linted]) if path.exists() else {}


def write(path: Path, content: object) -> None:
    """Keep it as JSON. Two runs may end at once: each leaves a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(content)))
    Path(name).replace(path)


def gather(
    root: Path, *, data: Path | None = None, environ: Mapping[str, str] | None = None, problem: str = ""
) -> Evidence:
    """Read what the suites left, and ask `preflight` and `smoke` of the installation at `data` now.

    `problem`: why there is no installation to ask.
    """
    source = source_digest(root)
    load = load_figures(root, source)
    tests, collected = read_results(root).tests, read_collected(root, source)
    linters = {name: one for name, one in read_linters(root).items() if one.source == source}
    return Evidence(
        source=source,
        cases=case_results(tests, collected, load),
        load=load,
        checks=[
            Checks(command, *((None, problem) if problem else asking.ask(command, root, data, environ)))
            for command in ("preflight", "smoke")
        ],
        environment=machine.environment(root),
        suite=Suite(collected, {name: one for name, one in tests.items() if one.source == source}, linters),
        at=time.time(),
        regression=regression_results(tests, collected),
        measured=components.read(root, source),
        failures=failures.read(root),
        pictures=pictures.taken(root, source_files(root)),
    )


def case_results(
    tests: Mapping[str, Outcome], collected: Collected, load: Mapping[str, Mapping[str, Any]]
) -> list[CaseResult]:
    """Every case with its tests on this source. Skipped tests and those of another source are no evidence.

    `load`: the figures of the load cases, which say in what length they ran.
    """
    found = [_case(case, title, tests, collected) for case, title in CASES.items()]
    return [_short(one) if _cut(one, load) else one for one in found]


def regression_results(tests: Mapping[str, Outcome], collected: Collected) -> list[CaseResult]:
    """As `case_results`, of what is asked for after a change of configuration."""
    return [_case(case, title, tests, collected) for case, title in REGRESSION.items()]


def _cut(result: CaseResult, load: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether it passed, but in a short form: by its figures, or by the run that passed."""
    if result.status != "PASS" or result.case not in FULL_LENGTH:
        return False
    return not (load.get(result.case, {}).get("full") and all(one.full for one in result.tests.values()))


def _short(result: CaseResult) -> CaseResult:
    return msgspec.structs.replace(result, status="SHORT FORM")


def _case(case: str, title: str, tests: Mapping[str, Outcome], collected: Collected) -> CaseResult:
    named = {name: one for name, one in tests.items() if case in one.cases}
    current = {name: one for name, one in named.items() if one.source == collected.source}
    marked = {*current, *(name for name, cases in collected.tests.items() if case in cases)}
    outcomes = {current[name].outcome if name in current else None for name in marked}
    all_passed = collected.whole and outcomes == {"passed"}
    status: Status = "FAIL" if "failed" in outcomes else "PASS" if all_passed else "NOT RUN"
    return CaseResult(case, title, status, current, len(named) - len(current), len(marked), collected.whole)


def load_figures(root: Path, source: str) -> dict[str, dict[str, Any]]:
    """The load cases' figures that were measured on this source, by case."""
    found = {}
    for path in sorted(load_directory(root).glob("TC-L-*.json")):
        figures = json.loads(path.read_bytes())
        if figures.get("source") == source:
            found[figures["case"]] = figures
    return found
