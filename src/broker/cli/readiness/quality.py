"""Defects by severity, and the metrics of the tests: coverage, defects, efficiency."""

from __future__ import annotations

from broker.cli.readiness import defects
from broker.cli.readiness.defects import SEVERITIES, Defect
from broker.cli.readiness.document import Block, Fields, Heading, Table, Text
from broker.cli.readiness.evidence import LINTERS, Evidence
from broker.cli.readiness.words import counted, lasted

SHOWN = 20
"""So many mended defects of a severity have a row."""
MENDED = {"fixed", "test removed"}


def blocks(evidence: Evidence) -> list[Block]:
    """Defects, then metrics."""
    return [*_defects(evidence), *_metrics(evidence)]


def _defects(evidence: Evidence) -> list[Block]:
    known = defects.of(evidence)
    found: list[Block] = [
        Heading(2, "Defects"),
        Text(
            "Every test and linter that failed in a run of the suites here and was not mended more than "
            "thirty days ago. Those of integration and security cases are critical, of other tests high, of "
            "linters medium; what failed and then passed on the same source, with nothing mended, is "
            "unsteady, and low."
        ),
    ]
    if not any(one.status not in MENDED for one in known):
        said = "None is open: no test and no linter failed in its last run on this source."
        if evidence.suite.not_run or not evidence.suite.collected.whole:
            said += " Not all of them have run: see the reasons at the production gate."
        found.append(Text(said))
    for severity in SEVERITIES:
        found.append(Heading(3, f"{severity} defects"))
        found += _table([one for one in known if one.severity == severity])
    return found


def _table(known: list[Defect]) -> list[Block]:
    if not known:
        return [Text("None.")]
    mended = [one for one in known if one.status in MENDED]
    shown = [one for one in known if one.status not in MENDED] + mended[:SHOWN]
    rows = [[one.number, one.component, one.description, one.status, one.resolution] for one in shown]
    more = len(mended) - SHOWN
    return [
        Table(["Bug ID", "Component", "Description", "Status", "Resolution"], rows),
        *(
            [Text(f"And {more} more that are mended: `var/results/defects.json` has them.")]
            if more > 0
            else []
        ),
    ]


def _metrics(evidence: Evidence) -> list[Block]:
    return [
        Heading(2, "Test metrics"),
        Heading(3, "Coverage"),
        _coverage(evidence),
        Heading(3, "Defect metrics"),
        _counts(evidence),
        Heading(3, "Efficiency"),
        _efficiency(evidence),
    ]


def _coverage(evidence: Evidence) -> Table:
    total, suite = len(evidence.cases), evidence.suite
    by = {status: sum(one.status == status for one in evidence.cases) for status in _WORDS}
    ended = sum(one.outcome == "passed" for one in suite.tests.values())
    return Table(
        ["What", "Value"],
        [
            ["Cases", total],
            ["Cases with evidence", counted(total - by["NOT RUN"], total)],
            *([f"Cases: {words}", counted(by[status], total)] for status, words in _WORDS.items()),
            ["Tests that show them", len({name for one in evidence.cases for name in one.tests})],
            ["All tests, also beside the cases", _known(evidence)],
            ["All tests: passed", counted(ended, len(suite.tests))],
            ["All tests: failed", len(defects.failing(evidence))],
            ["All tests: skipped or not run", len(suite.not_run)],
            *([name, _linted(evidence, name)] for name in LINTERS),
        ],
    )


_WORDS = {
    "PASS": "passed",
    "FAIL": "failed",
    "SHORT FORM": "short form only",
    "NOT RUN": "skipped or not run",
}


def _known(evidence: Evidence) -> str:
    """How many there are, where a run has seen all."""
    collected = evidence.suite.collected
    return str(len(collected.tests)) if collected.whole else "not known: no run has seen all"


def _linted(evidence: Evidence, name: str) -> str:
    said = evidence.suite.linters.get(name)
    return "NOT RUN" if said is None else "PASS" if said.ok else "FAIL"


def _counts(evidence: Evidence) -> Table:
    known = defects.of(evidence)
    fixed = sum(one.status in MENDED for one in known)
    rows: list[list[object]] = [["Defects found", len(known)]]
    for severity in SEVERITIES:
        own = [one for one in known if one.severity == severity]
        left = sum(one.status not in MENDED for one in own)
        rows.append([severity, f"{len(own)}, of which {left} open"])
    rows += [["Defects fixed", counted(fixed, len(known))], ["Defects open", len(known) - fixed]]
    return Table(["What", "Value"], rows)


def _efficiency(evidence: Evidence) -> Fields:
    tests = evidence.suite.tests.values()
    seconds = sum(one.seconds for one in tests)
    found = sum(one.this_source for one in defects.of(evidence))
    ended = [one for one in tests if one.outcome != "skipped"]
    passed = sum(one.outcome == "passed" for one in ended)
    return Fields(
        [
            ("Test execution time", f"{lasted(seconds)}, the sum of all tests on this source"),
            (
                "Defects found per hour",
                f"{found / seconds * 3600:.2f}: {found} found on this source"
                if seconds
                else "no test has run",
            ),
            ("Test pass rate", f"{passed / len(ended):.1%}" if ended else "no test has run"),
        ]
    )
