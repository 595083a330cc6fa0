"""The readiness report's sections, filled from what was measured and nothing else."""

from __future__ import annotations

import time
from typing import Any

from broker.cli.readiness import gate
from broker.cli.readiness.cases import FULL_LENGTH, SECTIONS, Section, section
from broker.cli.readiness.document import Block, Graph, Heading, Points, Table, Text, Verdict
from broker.cli.readiness.evidence import CaseResult, Evidence, Outcome

TITLE = "Message Broker: readiness report"
SEVERITY = {"functional": "high", "integration": "critical", "load": "high", "security": "critical"}
SERIES = (
    ("open", "Open messages"),
    ("lag", "Events not projected yet"),
    ("connections", "Database connections"),
)


def blocks(evidence: Evidence) -> list[Block]:
    """The whole report."""
    return [
        Heading(1, TITLE),
        *_summary(evidence),
        *_environment(evidence),
        *_checks(evidence),
        *(block for kind in SECTIONS for block in _section(evidence, kind)),
        *_defects(evidence),
        *_metrics(evidence),
        *_risks(evidence),
        *_conclusion(evidence),
    ]


def _summary(evidence: Evidence) -> list[Block]:
    rows = []
    for kind in (*SECTIONS, None):
        cases = [one for one in evidence.cases if kind is None or section(one.case) == kind]
        counts = {
            status: sum(one.status == status for one in cases) for status in ("PASS", "FAIL", "NOT RUN")
        }
        share = f"{counts['PASS'] / len(cases):.0%}"
        rows.append([kind.title if kind else "Total", len(cases), *counts.values(), share])
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(evidence.at))
    return [
        Text(f"{when}, source {evidence.source}. What was measured on another source is not counted."),
        Heading(2, "Summary"),
        Verdict(not gate.reasons(evidence)),
        Table(["Category", "Total", "Passed", "Failed", "Not run", "Passed share"], rows),
    ]


def _environment(evidence: Evidence) -> list[Block]:
    return [Heading(2, "Test environment"), Table(["What", "Value"], list(evidence.environment.items()))]


def _checks(evidence: Evidence) -> list[Block]:
    found: list[Block] = [Heading(2, "Checks")]
    for one in evidence.checks:
        if one.checks is None:
            found.append(Text(f"{one.name}: not run. {one.problem}."))
            continue
        found.append(Text(f"{one.name}: {one.passed} of {len(one.checks)} passed."))
        found.append(
            Table(
                ["Check", "Status", "Detail"],
                [[name, "PASS" if ok else "FAIL", detail] for name, ok, detail in one.checks],
            )
        )
    return found


def _section(evidence: Evidence, kind: Section) -> list[Block]:
    found: list[Block] = [Heading(2, f"{kind.title} tests")]
    ran = [test for one in evidence.cases if section(one.case) == kind for test in one.tests.values()]
    if ran:
        last = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(max(one.at for one in ran)))
        found.append(Text(f"Last run {last}; {sum(one.seconds for one in ran):.0f} s of tests."))
    for prefix, title in kind.prefixes.items():
        cases = [one for one in evidence.cases if one.case.split("-")[1] == prefix]
        if len(kind.prefixes) > 1:
            found.append(Heading(3, f"{title} ({cases[0].case} to {cases[-1].case})"))
        rows = [[one.case, one.title, one.status, _note(one, evidence.load.get(one.case))] for one in cases]
        found.append(Table(["Case", "What it asks", "Status", "Notes"], rows))
    return [*found, *_figures(evidence)] if kind.name == "load" else found


def _note(result: CaseResult, figures: dict[str, Any] | None) -> str:
    if result.status == "FAIL":
        failed = [name for name, one in result.tests.items() if one.outcome == "failed"]
        return f"failed: {', '.join(failed)}"
    if result.status == "NOT RUN":
        if any(one.outcome == "skipped" for one in result.tests.values()):
            return "skipped"
        return "last run on another source" if result.stale else "no test has run"
    note = f"{len(result.tests)} test{'s' if len(result.tests) > 1 else ''}"
    if figures is not None:
        length = "full length" if figures["full"] else "short form"
        note += f"; {length}: {figures['form']}"
    return note


def _figures(evidence: Evidence) -> list[Block]:
    header = [
        "Case",
        "Form",
        "Messages",
        "Success",
        "avg ms",
        "p50",
        "p95",
        "p99",
        "max",
        "Queue peak",
        "Lost",
        "Doubled",
    ]
    found: list[Block] = [Heading(3, "Figures")]
    if not evidence.load:
        return [*found, Text("None were measured on this source.")]
    found.append(Text("Latency counts from when a request was due, so that stalls are not hidden."))
    names = ("average_ms", "p50_ms", "p95_ms", "p99_ms", "max_ms", "open_peak", "lost", "doubled")
    rows = []
    for case, one in evidence.load.items():
        success = f"{one['success_rate']:.2%}" if "success_rate" in one else "–"
        messages = one.get("messages", one.get("accounted", "–"))
        rows.append([case, one["form"], messages, success, *(one.get(name, "–") for name in names)])
    found.append(Table(header, rows))
    found += [
        Graph(f"{case}: {title}", [(point["t"], point[name]) for point in one["series"]])
        for case, one in evidence.load.items()
        if len(one.get("series", ())) > 1
        for name, title in SERIES
    ]
    return found


def _failed(evidence: Evidence) -> dict[str, Outcome]:
    return {
        name: test for one in evidence.cases for name, test in one.tests.items() if test.outcome == "failed"
    }


def _defects(evidence: Evidence) -> list[Block]:
    failed = _failed(evidence)
    if not failed:
        return [Heading(2, "Defects"), Text("No test of a case failed on this source.")]
    rows = [
        [name, SEVERITY[section(one.cases[0]).name], ", ".join(one.cases), one.said, "open"]
        for name, one in failed.items()
    ]
    return [Heading(2, "Defects"), Table(["Test", "Severity", "Cases", "What it said", "Status"], rows)]


def _metrics(evidence: Evidence) -> list[Block]:
    total = len(evidence.cases)
    ran = sum(one.status != "NOT RUN" for one in evidence.cases)
    tests = {name: test for one in evidence.cases for name, test in one.tests.items()}
    return [
        Heading(2, "Coverage"),
        Table(
            ["What", "Value"],
            [
                ["Cases", total],
                ["Cases with evidence", f"{ran} ({ran / total:.0%})"],
                ["Cases passed", sum(one.status == "PASS" for one in evidence.cases)],
                ["Tests that show them", len(tests)],
                ["Their time", f"{sum(one.seconds for one in tests.values()):.0f} s"],
                ["Defects open", len(_failed(evidence))],
            ],
        ),
    ]


def _risks(evidence: Evidence) -> list[Block]:
    risks = [
        f"{case} was run in a short form ({one['form']}): what only shows after longer was not seen."
        for case, one in evidence.load.items()
        if not one["full"]
    ]
    if "TC-L-004" in evidence.load:
        risks.append(
            "TC-L-004 compresses a day; what takes a day of time, such as nightly jobs, was not seen."
        )
    risks.append(
        "What was measured holds for this machine and these servers; run the suites where it will run."
    )
    return [Heading(2, "Risks"), Points(risks)]


def _conclusion(evidence: Evidence) -> list[Block]:
    reasons = gate.reasons(evidence)
    full = [case for case in FULL_LENGTH if evidence.load.get(case, {}).get("full")]
    text = (
        f"All checks passed and every case was shown; {', '.join(full)} ran in full length."
        if not reasons
        else "It must not go into production, because:"
    )
    found: list[Block] = [Heading(2, "Production gate"), Verdict(not reasons), Text(text)]
    if reasons:
        found.append(Points(reasons))
    return found
