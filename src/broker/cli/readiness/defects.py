"""Defects: what failed in a run, whether it was mended since, and how grave each is.

The suites keep every failure, also once the test passes; a month after that it goes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec

from broker.cli.readiness import failures
from broker.cli.readiness.cases import SECTIONS, section
from broker.cli.readiness.evidence import LINTERS, Evidence, Linted, Outcome, write
from broker.cli.readiness.failures import Failure

SEVERITIES: Final = ("Critical", "High", "Medium", "Low")
KEEP_SECONDS = 30 * 86_400
_SECTION: Final = {"functional": "High", "integration": "Critical", "load": "High", "security": "Critical"}
Status = Literal["open", "unsteady", "fixed", "not run since", "test removed"]


class Defect(msgspec.Struct, frozen=True):
    """One row of the report. `this_source`: it failed on the source that the report is about."""

    number: str
    severity: str
    component: str
    description: str
    status: Status
    resolution: str
    this_source: bool


def note(root: Path, outcomes: Mapping[str, Outcome | Linted]) -> None:
    """Keep what failed in a run, and what passes that failed before."""
    before = failures.read(root)
    known = dict(before)
    for name, one in outcomes.items():
        failed, passed = _ended(one)
        old = known.get(name)
        if failed:
            cases = one.cases if isinstance(one, Outcome) else []
            first = one.at if old is None or old.passed_at is not None else old.first
            known[name] = Failure(cases, one.said, one.source, one.at, min(first, one.at))
        elif passed and old is not None and old.passed_at is None and one.at > old.at:
            known[name] = msgspec.structs.replace(old, passed_at=one.at, passed_source=one.source)
    newest = max((one.at for one in outcomes.values()), default=0.0)
    kept = {name: one for name, one in known.items() if newest - (one.passed_at or newest) < KEEP_SECONDS}
    if kept != before:
        write(failures.file(root), kept)


def _ended(one: Outcome | Linted) -> tuple[bool, bool]:
    if isinstance(one, Linted):
        return not one.ok, one.ok
    return one.outcome == "failed", one.outcome == "passed"


def failing(evidence: Evidence) -> dict[str, Outcome]:
    """The tests that fail, beside the cases too."""
    return {name: test for name, test in evidence.suite.tests.items() if test.outcome == "failed"}


def broken(evidence: Evidence) -> list[str]:
    """The linters that failed."""
    linters = evidence.suite.linters
    return [name for name in LINTERS if name in linters and not linters[name].ok]


def of(evidence: Evidence) -> list[Defect]:
    """All that are known, open ones first."""
    suite = evidence.suite
    now: dict[str, Failure] = {
        name: Failure(one.cases, one.said, one.source, one.at, one.at)
        for name, one in failing(evidence).items()
    }
    now |= {
        name: Failure([], one.said, one.source, one.at, one.at)
        for name, one in suite.linters.items()
        if not one.ok
    }
    past = {name: one for name, one in evidence.failures.items() if name not in now}
    found = [_defect(name, one, "open", evidence.source) for name, one in now.items()]
    found += [_defect(name, one, _status(name, one, evidence), evidence.source) for name, one in past.items()]
    order = ("open", "unsteady", "not run since", "fixed", "test removed")
    return sorted(
        found, key=lambda one: (SEVERITIES.index(one.severity), order.index(one.status), one.description)
    )


def _status(name: str, failure: Failure, evidence: Evidence) -> Status:
    """Of one that does not fail now; `unsteady`: it passes on the very source on which it failed."""
    collected = evidence.suite.collected
    if failure.passed_at is not None:
        return "unsteady" if failure.passed_source == failure.source else "fixed"
    if collected.whole and name not in collected.tests and name not in LINTERS:
        return "test removed"
    return "not run since"


def _defect(name: str, failure: Failure, status: Status, source: str) -> Defect:
    mended = {
        "open": "none yet: mend it and run the suites again",
        "unsteady": f"none: it passed later on the same source, {failure.passed_source}",
        "fixed": f"it passes since source {failure.passed_source}",
        "not run since": f"not known: it failed on source {failure.source} and has not run on this one",
        "test removed": "there is no such test any more",
    }
    said = ": ".join(text for text in (name, " ".join(failure.said.split())) if text)
    cases = f" ({', '.join(failure.cases)})" if failure.cases else ""
    return Defect(
        number=f"D-{hashlib.sha256(name.encode()).hexdigest()[:6]}",
        severity="Low" if status == "unsteady" else severity(name, failure.cases),
        component=component(name, failure.cases),
        description=f"{said}{cases}",
        status=status,
        resolution=mended[status],
        this_source=failure.source == source,
    )


def severity(name: str, cases: list[str]) -> str:
    """Of integration and security cases critical, of other tests high, of linters medium."""
    if name in LINTERS:
        return "Medium"
    kinds = {_SECTION[section(case).name] for case in cases if case.startswith("TC-")}
    return "Critical" if "Critical" in kinds else "High"


def component(name: str, cases: list[str]) -> str:
    """What its cases are about; else the directory of tests/ that it lies in."""
    prefixes = {case.split("-")[1] for case in cases if case.startswith("TC-")}
    named = [title for one in SECTIONS for prefix, title in one.prefixes.items() if prefix in prefixes]
    if named:
        return ", ".join(named)
    parts = name.partition("::")[0].split("/")
    return "Source" if name in LINTERS else parts[1] if len(parts) > 2 else "Tests"
