"""The cases, section by section: when they ran, how long, how each ended."""

from __future__ import annotations

from broker.cli.readiness import load
from broker.cli.readiness.cases import SECTIONS, Section, section
from broker.cli.readiness.document import Block, Fields, Heading, Table, Text
from broker.cli.readiness.evidence import CaseResult, Evidence
from broker.cli.readiness.words import lasted, when


def blocks(evidence: Evidence) -> list[Block]:
    """All sections, and what has to hold after a change of configuration."""
    found: list[Block] = [Heading(2, "Test execution")]
    found += [block for kind in SECTIONS for block in _section(evidence, kind)]
    return [*found, *_regression(evidence)]


def _section(evidence: Evidence, kind: Section) -> list[Block]:
    found: list[Block] = [Heading(3, f"{kind.title} tests")]
    found.append(_ran([one for one in evidence.cases if section(one.case) == kind]))
    for prefix, title in kind.prefixes.items():
        cases = [one for one in evidence.cases if one.case.split("-")[1] == prefix]
        if len(kind.prefixes) > 1:
            found.append(Heading(4, f"{title} ({cases[0].case} to {cases[-1].case})"))
        found += load.results(evidence, cases, note) if kind.name == "load" else [_table(cases)]
    return [*found, *load.figures(evidence)] if kind.name == "load" else found


def _ran(cases: list[CaseResult]) -> Fields:
    """When, how long, and how it ended."""
    tests = {name: test for one in cases for name, test in one.tests.items()}
    status = next(
        (word for word in ("FAIL", "NOT RUN", "SHORT FORM") if any(c.status == word for c in cases)), "PASS"
    )
    if not tests:
        return Fields([("Execution date", "not run on this source"), ("Status", status)])
    first, last = (when(each(one.at for one in tests.values())) for each in (min, max))
    seconds = sum(one.seconds for one in tests.values())
    return Fields(
        [
            ("Execution date", first if first == last else f"{first} to {last}"),
            ("Duration", f"{lasted(seconds)}, the sum of {len(tests)} tests, of which several run at once"),
            ("Status", status),
        ]
    )


def _table(cases: list[CaseResult]) -> Table:
    return Table(
        ["Case", "What it asks", "Status", "Notes"],
        [[one.case, one.title, one.status, note(one)] for one in cases],
    )


def note(result: CaseResult) -> str:
    """Which tests failed, or what is missing; else how many there are."""
    if result.status == "FAIL":
        failed = [name for name, one in result.tests.items() if one.outcome == "failed"]
        return f"failed: {', '.join(failed)}"
    if result.status == "NOT RUN":
        if any(one.outcome == "skipped" for one in result.tests.values()):
            return "skipped"
        if not result.tests:
            return "last run on another source" if result.stale else "no test has run"
        if len(result.tests) < result.marked:
            return f"{len(result.tests)} of {result.marked} tests"
        if not result.whole:
            return f"{len(result.tests)} passed; no run has seen whether other tests show it"
    return f"{len(result.tests)} test{'s' if len(result.tests) > 1 else ''}"


def _regression(evidence: Evidence) -> list[Block]:
    found: list[Block] = [Heading(3, "Regression")]
    found.append(
        Text("After a change of configuration; after a change of the source every case counts anew.")
    )
    return [*found, _table(evidence.regression)] if evidence.regression else found
