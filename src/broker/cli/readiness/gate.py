"""The production gate: every reason not to deploy, from what was shown and what was not."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from broker.cli.readiness.cases import FULL_LENGTH, SECTIONS, section
from broker.cli.readiness.evidence import LINTERS, CaseResult, Evidence

CHECKS: Final = {"preflight": 7, "smoke": 9}
MIN_SUCCESS = 0.95
MIN_BURST_SUCCESS = 0.90
MAX_AVERAGE_MS = 1000.0
MAX_P95_MS = 3000.0
MAX_P99_MS = 5000.0
LIMITS: Final = {
    "average": ("average_ms", MAX_AVERAGE_MS),
    "p95": ("p95_ms", MAX_P95_MS),
    "p99": ("p99_ms", MAX_P99_MS),
}
NAMED: Final = 5
"""So many tests are named in a reason; the report's tables have the others."""
PEAK: Final = "TC-L-005"
"""Offers more than can be taken, on purpose: its messages have to arrive, not to be answered quickly."""


class Aim(msgspec.Struct, frozen=True):
    """What the product asks of itself, beyond the requirements; judged where the case ran in full length."""

    case: str
    field: str
    limit: float
    form: str
    """Of the measured value."""
    asked: str

    def missed(self, figures: dict[str, Any]) -> bool:
        """Whether these figures miss it, or do not have it."""
        found = figures.get(self.field)
        if found is None:
            return True
        return bool(found < self.limit if self.field == "success_rate" else found > self.limit)

    def reached(self, figures: dict[str, Any]) -> str:
        """What was measured, in words."""
        found = figures.get(self.field)
        return "not measured" if found is None else self.form.format(found)


AIMS: Final = (
    *(
        Aim(case, "success_rate", 0.9999, "success rate {:.3%}", "success rate at least 99.99%")
        for case in FULL_LENGTH
    ),
    Aim("TC-L-003", "p99_ms", 250.0, "p99 {:.0f} ms", "p99 at most 250 ms"),
    Aim(
        "TC-L-004",
        "until_settled_s",
        120.0,
        "all delivered and in MySQL after {:.1f} s",
        "a day's messages delivered and in MySQL within 120 s",
    ),
)


def reasons(evidence: Evidence) -> list[str]:
    """Why not to deploy; empty means DEPLOY."""
    return [
        *_checks(evidence),
        *_cases(evidence.cases),
        *_regression(evidence),
        *_suite(evidence),
        *_lengths(evidence),
        *missed(evidence),
    ]


def missed(evidence: Evidence) -> list[str]:
    """Every limit and aim that the load cases' figures miss."""
    return [*_limits(evidence), *_aims(evidence)]


def _checks(evidence: Evidence) -> list[str]:
    found = []
    for one in evidence.checks:
        if one.checks is None:
            found.append(f"{one.name}: not run. {one.problem}.")
            continue
        failed = [name for name, status, _ in one.checks if status == "failed"]
        if failed:
            found.append(f"{one.name}: {', '.join(failed)} failed.")
        if len(one.checks) != CHECKS[one.name]:
            found.append(f"{one.name}: {len(one.checks)} checks answered, {CHECKS[one.name]} are asked for.")
    return found


def _cases(cases: list[CaseResult]) -> list[str]:
    found = []
    for kind in SECTIONS:
        for status, words in (("FAIL", "failed"), ("NOT RUN", "not run on this source")):
            ids = [one.case for one in cases if one.status == status and section(one.case) == kind]
            if ids:
                found.append(f"{kind.title}: {len(ids)} {words}: {', '.join(_runs(ids))}.")
    return found


def _runs(ids: list[str]) -> list[str]:
    """Ids that follow on one another as `first to last`; two are no run."""
    runs: list[list[str]] = []
    for one in ids:
        kind, _, number = one.rpartition("-")
        if runs and runs[-1][-1] == f"{kind}-{int(number) - 1:03}":
            runs[-1].append(one)
        else:
            runs.append([one])
    return [text for run in runs for text in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else run)]


def _regression(evidence: Evidence) -> list[str]:
    words = {"FAIL": "failed", "NOT RUN": "not run on this source"}
    return [f"{one.title}: {words[one.status]}." for one in evidence.regression if one.status in words]


def _suite(evidence: Evidence) -> list[str]:
    """What no case asks for, and still has to hold: every other test, and the linters."""
    suite, found = evidence.suite, []
    failed = sorted(name for name, one in suite.tests.items() if one.outcome == "failed" and not one.cases)
    if failed:
        found.append(f"Tests beside the cases: {len(failed)} failed: {_some(failed)}.")
    if not suite.collected.whole:
        found.append(
            "All tests: no run on this source has seen which there are (`./broker test all --full`)."
        )
    if missing := suite.not_run:
        of = f" of {len(suite.collected.tests)}" if suite.collected.whole else ""
        found.append(f"All tests: {len(missing)}{of} not run on this source: {_some(missing)}.")
    for name in LINTERS:
        said = suite.linters.get(name)
        if said is None or not said.ok:
            found.append(f"{name}: {'not run on this source' if said is None else 'failed'}.")
    return found


def _some(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _lengths(evidence: Evidence) -> list[str]:
    found = []
    short = {one.case for one in evidence.cases if one.status == "SHORT FORM"}
    for case in FULL_LENGTH:
        figures = evidence.load.get(case)
        if case in short or figures is None or not figures["full"]:
            found.append(f"{case}: not run in its full length (`./broker test load --full`).")
    return found


def _limits(evidence: Evidence) -> list[str]:
    found = []
    for case, figures in evidence.load.items():
        for what in ("lost", "doubled"):
            if count := figures.get(what):
                found += [f"{case}: {count} messages {what}."]
        least = MIN_BURST_SUCCESS if case == "TC-L-003" else MIN_SUCCESS
        if figures.get("success_rate", 1) < least:
            found.append(
                f"{case}: success rate {figures['success_rate']:.1%}, at least {least:.0%} is asked."
            )
        for name, (field, most) in LIMITS.items():
            if case != PEAK and figures.get(field, 0) > most:
                found.append(f"{case}: {name} {figures[field]:.0f} ms, at most {most:.0f} ms is asked.")
    return found


def _aims(evidence: Evidence) -> list[str]:
    found = []
    for aim in AIMS:
        figures = evidence.load.get(aim.case)
        if figures is not None and figures["full"] and aim.missed(figures):
            found.append(f"{aim.case}: {aim.reached(figures)}, the product's own aim is {aim.asked}.")
    return found
