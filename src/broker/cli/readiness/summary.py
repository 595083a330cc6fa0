"""The report's head: what it is of, the verdict, the numbers, what was found."""

from __future__ import annotations

from broker.cli.readiness import defects, gate, outlook
from broker.cli.readiness.cases import SECTIONS, section
from broker.cli.readiness.document import Block, Fields, Heading, Points, Table, Verdict
from broker.cli.readiness.evidence import Evidence
from broker.cli.readiness.words import when

STATUSES = {
    "PASS": "Passed",
    "FAIL": "Failed",
    "SHORT FORM": "Short form only",
    "NOT RUN": "Skipped or not run",
}


def head(evidence: Evidence) -> list[Block]:
    """Project, date, cycle; who tested is for the testers to fill in."""
    times = [one.at for one in evidence.suite.tests.values()]
    span = f", tests from {when(min(times))} to {when(max(times))}" if times else ", no test has run"
    return [
        Fields(
            [
                ("Project", "Message Broker"),
                ("Phase", "testing before production"),
                ("Report date", when(evidence.at)),
                ("Test cycle", f"all runs on source {evidence.source}{span}"),
                ("Cycle number (to be filled in)", ""),
                ("Made by", "`./broker report`; what was measured on another source is not counted"),
                ("Prepared by (name of the tester, to be filled in)", ""),
            ]
        )
    ]


def overall(evidence: Evidence) -> str:
    """PASS, FAIL or IN PROGRESS; the last while nothing failed and evidence is missing."""
    if not gate.reasons(evidence):
        return "PASS"
    failed = any(one.status == "FAIL" for one in (*evidence.cases, *evidence.regression))
    beside = defects.failing(evidence) or defects.broken(evidence) or gate.missed(evidence)
    unwell = any(one.checks is not None and one.passed < len(one.checks) for one in evidence.checks)
    return "FAIL" if failed or beside or unwell else "IN PROGRESS"


def blocks(evidence: Evidence) -> list[Block]:
    """The executive summary."""
    rows = []
    for kind in (*SECTIONS, None):
        cases = [one for one in evidence.cases if kind is None or section(one.case) == kind]
        counts = {status: sum(one.status == status for one in cases) for status in STATUSES}
        share = f"{counts['PASS'] / len(cases):.0%}"
        rows.append([kind.title if kind else "Total", len(cases), *counts.values(), share])
    return [
        Heading(2, "Summary"),
        Fields([("Overall status", overall(evidence))]),
        Verdict(not gate.reasons(evidence)),
        Heading(3, "Statistics"),
        Table(["Category", "Total", *STATUSES.values(), "Pass rate"], rows),
        Heading(3, "Key findings"),
        Points(_findings(evidence)),
        Heading(3, "What to do"),
        Points(outlook.short_term(evidence)),
    ]


def _findings(evidence: Evidence) -> list[str]:
    passed = sum(one.status == "PASS" for one in evidence.cases)
    found = [f"{passed} of {len(evidence.cases)} cases are shown."]
    short = [one.case for one in evidence.cases if one.status == "SHORT FORM"]
    if short:
        found.append(f"Seen only in a short form, which is no evidence for production: {', '.join(short)}.")
    if failed := defects.failing(evidence):
        found.append(f"{len(failed)} test{'s fail' if len(failed) > 1 else ' fails'}.")
    if linters := defects.broken(evidence):
        found.append(f"Failed beside the tests: {', '.join(linters)}.")
    if evidence.load:
        total = sum(one.get("accounted", 0) for one in evidence.load.values())
        lost = sum(one.get("lost", 0) for one in evidence.load.values())
        doubled = sum(one.get("doubled", 0) for one in evidence.load.values())
        found.append(
            f"Under load {total:,} accepted messages were looked for by their ids in the tables and in the "
            f"history: {lost} lost, {doubled} doubled."
        )
    if (burst := evidence.load.get("TC-L-003")) is not None:
        found.append(
            f"At {burst['rate']:g} messages/s: average {burst['average_ms']:.0f} ms, "
            f"p99 {burst['p99_ms']:.0f} ms; {gate.MAX_P99_MS:.0f} ms are allowed."
        )
    for one in evidence.checks:
        passed_of = "not run" if one.checks is None else f"{one.passed} of {len(one.checks)} checks passed"
        found.append(f"{one.name}: {passed_of}.")
    return found
