"""The readiness report's sections, filled from what was measured and nothing else."""

from __future__ import annotations

import time

from broker.cli.readiness import gate, load
from broker.cli.readiness.cases import FULL_LENGTH, SECTIONS, Section, section
from broker.cli.readiness.document import Block, Heading, Points, Table, Text, Verdict
from broker.cli.readiness.evidence import LINTERS, CaseResult, Evidence, Outcome

SEVERITIES = ("critical", "high", "medium")
TITLE = "Message Broker: readiness report"
SEVERITY = {"functional": "high", "integration": "critical", "load": "high", "security": "critical"}
SAID = {"ok": "PASS", "warning": "WARNING", "failed": "FAIL"}
STATUSES = {"PASS": "Passed", "FAIL": "Failed", "SHORT FORM": "Short form only", "NOT RUN": "Not run"}
FULL_RUN = "`./broker test all --full`"


def blocks(evidence: Evidence) -> list[Block]:
    """The whole report."""
    return [
        Heading(1, TITLE),
        *_summary(evidence),
        *_environment(evidence),
        *_checks(evidence),
        *(block for kind in SECTIONS for block in _section(evidence, kind)),
        *_regression(evidence),
        *_defects(evidence),
        *_metrics(evidence),
        *_risks(evidence),
        *_conclusion(evidence),
        *_appendices(evidence),
    ]


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def _summary(evidence: Evidence) -> list[Block]:
    rows = []
    for kind in (*SECTIONS, None):
        cases = [one for one in evidence.cases if kind is None or section(one.case) == kind]
        counts = {status: sum(one.status == status for one in cases) for status in STATUSES}
        share = f"{counts['PASS'] / len(cases):.0%}"
        rows.append([kind.title if kind else "Total", len(cases), *counts.values(), share])
    return [
        Text(
            f"{_when(evidence.at)}, source {evidence.source}. "
            "What was measured on another source is not counted."
        ),
        Heading(2, "Summary"),
        Verdict(not gate.reasons(evidence)),
        Table(["Category", "Total", *STATUSES.values(), "Passed share"], rows),
        Heading(3, "Key findings"),
        Points(_findings(evidence)),
        Heading(3, "What to do"),
        Points(_recommendations(evidence)),
    ]


def _findings(evidence: Evidence) -> list[str]:
    passed = sum(one.status == "PASS" for one in evidence.cases)
    found = [f"{passed} of {len(evidence.cases)} cases are shown."]
    short = [one.case for one in evidence.cases if one.status == "SHORT FORM"]
    if short:
        found.append(f"Seen only in a short form, which is no evidence for production: {', '.join(short)}.")
    if failed := _failed(evidence):
        found.append(f"{len(failed)} tests fail.")
    if broken := _broken(evidence):
        found.append(f"Failed beside the tests: {', '.join(broken)}.")
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


def _recommendations(evidence: Evidence) -> list[str]:
    """Short term, out of what is missing; long term, out of what no run of the suites can show."""
    todo = []
    if _failed(evidence) or _broken(evidence):
        todo.append("Mend what fails (see Defects), then run the suites again.")
    unseen = evidence.suite.not_run or not evidence.suite.collected.whole
    if unseen or any(one.status in {"NOT RUN", "SHORT FORM"} for one in evidence.cases):
        todo.append(f"Run {FULL_RUN}; with `-- --missing` it leaves out what passed on this source before.")
    if any(one.checks is None or one.passed < len(one.checks) for one in evidence.checks):
        todo.append(
            "Start the installation (`./broker up --detach`), mend what its checks name, report again."
        )
    if not todo:
        todo.append("Install it as docs/operations-linux.md or docs/operations-windows.md says.")
    todo.append("After the deployment run `broker preflight` and `broker smoke` on the machine itself.")
    todo.append("Watch queue, lag and response times with ops/prometheus and ops/grafana from the first day.")
    return todo


def _environment(evidence: Evidence) -> list[Block]:
    return [Heading(2, "Test environment"), Table(["What", "Value"], list(evidence.environment.items()))]


def _checks(evidence: Evidence) -> list[Block]:
    found: list[Block] = [Heading(2, "Checks"), *([Text(evidence.asked)] if evidence.asked else [])]
    for one in evidence.checks:
        if one.checks is None:
            found.append(Text(f"{one.name}: not run. {one.problem}."))
            continue
        found.append(Text(f"{one.name}: {one.passed} of {len(one.checks)} passed."))
        found.append(
            Table(
                ["Check", "Status", "Detail"],
                [[name, SAID[status], detail] for name, status, detail in one.checks],
            )
        )
    return found


def _section(evidence: Evidence, kind: Section) -> list[Block]:
    found: list[Block] = [Heading(2, f"{kind.title} tests")]
    found += _ran([one for one in evidence.cases if section(one.case) == kind])
    for prefix, title in kind.prefixes.items():
        cases = [one for one in evidence.cases if one.case.split("-")[1] == prefix]
        if len(kind.prefixes) > 1:
            found.append(Heading(3, f"{title} ({cases[0].case} to {cases[-1].case})"))
        found += load.results(evidence, cases, _note) if kind.name == "load" else [_table(cases)]
    return [*found, *load.figures(evidence)] if kind.name == "load" else found


def _ran(cases: list[CaseResult]) -> list[Block]:
    """When, how long, and how it ended."""
    tests = {name: test for one in cases for name, test in one.tests.items()}
    status = next(
        (word for word in ("FAIL", "NOT RUN", "SHORT FORM") if any(c.status == word for c in cases)), "PASS"
    )
    if not tests:
        return [Text(f"Status: {status}.")]
    last = _when(max(one.at for one in tests.values()))
    seconds = sum(one.seconds for one in tests.values())
    return [Text(f"Status: {status}. Last run {last}; {len(tests)} tests in {_minutes(seconds)}.")]


def _table(cases: list[CaseResult]) -> Table:
    return Table(
        ["Case", "What it asks", "Status", "Notes"],
        [[one.case, one.title, one.status, _note(one)] for one in cases],
    )


def _note(result: CaseResult) -> str:
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
    found: list[Block] = [Heading(2, "Regression")]
    found.append(
        Text("After a change of configuration; after a change of the source every case counts anew.")
    )
    return [*found, _table(evidence.regression)] if evidence.regression else found


def _failed(evidence: Evidence) -> dict[str, Outcome]:
    return {name: test for name, test in evidence.suite.tests.items() if test.outcome == "failed"}


def _broken(evidence: Evidence) -> list[str]:
    """The linters that failed."""
    linters = evidence.suite.linters
    return [name for name in LINTERS if name in linters and not linters[name].ok]


def _severity(test: Outcome) -> str:
    kinds = {SEVERITY.get(section(case).name, "high") for case in test.cases if case.startswith("TC-")}
    return "critical" if "critical" in kinds else "high"


def _defects(evidence: Evidence) -> list[Block]:
    failed, linters = _failed(evidence), evidence.suite.linters
    found = [
        [_severity(one), ", ".join(one.cases) or "–", name, one.said, "open"] for name, one in failed.items()
    ]
    found += [["medium", "–", name, linters[name].said, "open"] for name in _broken(evidence)]
    if not found:
        said = "None is open: no test and no linter failed in its last run on this source."
        if evidence.suite.not_run or not evidence.suite.collected.whole:
            said += " Not all of them have run: see the reasons at the production gate."
        return [Heading(2, "Defects"), Text(said)]
    found.sort(key=lambda row: (SEVERITIES.index(row[0]), row[2]))
    rows = [[number, *row] for number, row in enumerate(found, 1)]
    header = ["No.", "Severity", "Cases", "Test", "What it said", "Status"]
    return [Heading(2, "Defects"), Table(header, rows)]


def _metrics(evidence: Evidence) -> list[Block]:
    total = len(evidence.cases)
    ran = sum(one.status != "NOT RUN" for one in evidence.cases)
    tests = {name: test for one in evidence.cases for name, test in one.tests.items()}
    passed = sum(one.outcome == "passed" for one in tests.values())
    failed = [_severity(one) for one in _failed(evidence).values()]
    suite = evidence.suite
    ended = sum(one.outcome == "passed" for one in suite.tests.values())
    return [
        Heading(2, "Coverage"),
        Table(
            ["What", "Value"],
            [
                ["Cases", total],
                ["Cases with evidence", f"{ran} ({ran / total:.0%})"],
                *([f"Cases: {words}", _count(evidence, status)] for status, words in STATUSES.items()),
                ["Tests that show them", len(tests)],
                ["Tests passed", f"{passed} ({passed / len(tests):.0%})" if tests else 0],
                ["Their time", _minutes(sum(one.seconds for one in tests.values()))],
                ["All tests, also beside the cases", _known(evidence)],
                ["All tests: passed", ended],
                ["All tests: not run", len(suite.not_run)],
                *([name, _linted(evidence, name)] for name in LINTERS),
                ["Defects open: critical", failed.count("critical")],
                ["Defects open: high", failed.count("high")],
                ["Defects open: medium", len(_broken(evidence))],
            ],
        ),
    ]


def _known(evidence: Evidence) -> str:
    """How many there are, where a run has seen all."""
    collected = evidence.suite.collected
    return str(len(collected.tests)) if collected.whole else "not known: no run has seen all"


def _linted(evidence: Evidence, name: str) -> str:
    said = evidence.suite.linters.get(name)
    return "NOT RUN" if said is None else "PASS" if said.ok else "FAIL"


def _count(evidence: Evidence, status: str) -> int:
    return sum(one.status == status for one in evidence.cases)


def _risks(evidence: Evidence) -> list[Block]:
    rows = [
        ["A fault that only shows after longer", f"{case} was run in a short form: {one['form']}", FULL_RUN]
        for case, one in evidence.load.items()
        if not one["full"]
    ]
    if "TC-L-004" in evidence.load:
        said = "TC-L-004 compresses a day: what takes a day of time, such as nightly jobs, was not seen"
        rows.append(["A fault of a whole day", said, "watch the first day in production"])
    rows.append(
        [
            "Another machine is slower",
            "what was measured holds for this machine and these servers",
            "run the load cases where it will run",
        ]
    )
    return [Heading(2, "Risks"), Table(["Risk", "Why", "What lessens it"], rows)]


def _conclusion(evidence: Evidence) -> list[Block]:
    reasons = gate.reasons(evidence)
    full = [case for case in FULL_LENGTH if evidence.load.get(case, {}).get("full")]
    text = (
        f"All checks and all {len(evidence.suite.tests)} tests passed, and every case was shown; "
        f"{', '.join(full)} ran in full length."
        if not reasons
        else "It must not go into production, because:"
    )
    found: list[Block] = [Heading(2, "Production gate"), Verdict(not reasons), Text(text)]
    if reasons:
        found.append(Points(reasons))
    names = ("QA lead", "Technical lead", "Project manager")
    return [*found, Table(["Sign-off", "Name", "Date"], [[name, "", ""] for name in names])]


def _appendices(evidence: Evidence) -> list[Block]:
    """What the figures rest on, so that anybody can look it up or run it again."""
    tests = {
        name: test for one in (*evidence.cases, *evidence.regression) for name, test in one.tests.items()
    }
    sent = sum(one.get("accounted", 0) for one in evidence.load.values())
    data = "Test data: every suite sets up its own users and clients"
    return [
        Heading(2, "Appendix: where it comes from"),
        Points(
            [
                "Outcomes of the tests: `var/results/tests.json`. Figures of the load cases: `var/load/`.",
                f"{data}; under load the client `demo` sent {sent:,} messages.",
                "Screenshots of the portal: `./broker test portal -- -k width --screenshots DIRECTORY`.",
            ]
        ),
        Heading(2, "Appendix: every test of a case"),
        Table(
            ["Test", "Cases", "Outcome", "Seconds", "Run at"],
            [
                [name, ", ".join(one.cases), one.outcome, one.seconds, _when(one.at)]
                for name, one in sorted(tests.items())
            ],
        ),
    ]
