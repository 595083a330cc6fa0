"""What the figures rest on, for anybody to look up or to run again: logs, data, screenshots, graphs."""

from __future__ import annotations

import time
from collections.abc import Mapping

from broker.cli.readiness import load, pictures
from broker.cli.readiness.cases import SECTIONS, section
from broker.cli.readiness.components import Measured
from broker.cli.readiness.document import Attached, Block, Heading, Picture, Points, Table, Text
from broker.cli.readiness.evidence import Evidence, Outcome
from broker.cli.readiness.words import when

BESIDE = "beside the cases"


def blocks(evidence: Evidence) -> list[Block]:
    """Appendices A to E."""
    return [
        Heading(2, "Appendices"),
        Heading(3, "A. Test logs"),
        *_logs(evidence),
        Heading(3, "B. Test data"),
        *_data(evidence),
        Heading(3, "C. Screenshots"),
        *_pictures(evidence),
        Heading(3, "D. Performance graphs"),
        *load.graphs(evidence),
        Heading(3, "E. Every test of a case"),
        _tests(evidence),
    ]


def _logs(evidence: Evidence) -> list[Block]:
    """A log a section, beside the report; and what all of it was read from."""
    names = [one.name for one in SECTIONS]
    titles = [*(f"{one.title} tests" for one in SECTIONS), "Tests beside the cases"]
    files = [f"logs/{name}.log" for name in (*names, "other")]
    kept = [
        "The outcomes themselves: `var/results/tests.json`; the figures of the load cases: `var/load/`.",
        "What failed once: `var/results/defects.json`.",
        "What an installation logs: `log/` of its data directory, or the journal; `broker smoke` says which.",
    ]
    return [
        Text(
            "Written with this report, beside it: each test's end, outcome, seconds, cases, and what it said."
        ),
        *(
            Attached(title, file, _log(title, evidence, _own(evidence.suite.tests, name)))
            for title, file, name in zip(titles, files, (*names, BESIDE), strict=True)
        ),
        Points(kept),
    ]


def _own(tests: Mapping[str, Outcome], name: str) -> dict[str, Outcome]:
    """The tests of a section's cases; one may be of several."""
    found = {}
    for test, one in tests.items():
        kinds = {section(case).name for case in one.cases if case.startswith("TC-")} or {BESIDE}
        if name in kinds:
            found[test] = one
    return found


def _log(title: str, evidence: Evidence, tests: Mapping[str, Outcome]) -> str:
    lines = [f"# {title}, source {evidence.source}, written {when(evidence.at)}: {len(tests)} tests"]
    for name, one in sorted(tests.items(), key=lambda each: (each[1].at, each[0])):
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(one.at))
        cases = f" [{', '.join(one.cases)}]" if one.cases else ""
        lines.append(f"{at} {one.outcome.upper():7} {one.seconds:8.2f} s {name}{cases}")
        lines += [f"    {line}" for line in one.said.splitlines()]
    return "\n".join(lines) + "\n"


def _data(evidence: Evidence) -> list[Block]:
    """Who was made for the tests, and how many messages there were, at the end of the suites' systems."""
    sent = sum(one.get("accounted", 0) for one in evidence.load.values())
    found: list[Block] = [
        Text(
            "Every suite sets up its own users, clients and messages, in systems of its own, and removes "
            f"them with these. Under load {sent:,} accepted messages were looked for by their ids. "
            "The suites that keep one system for all their tests leave here who was known to it at the end:"
        )
    ]
    if not evidence.measured:
        return [*found, Text("None of them has run to its end on this source.")]
    rows = [
        [one.suite, when(one.at), _people(one), ", ".join(one.clients) or "–", f"{one.messages:,}"]
        for one in evidence.measured
    ]
    return [*found, Table(["Suite", "At its end", "Users created", "Clients created", "Messages"], rows)]


def _people(measured: Measured) -> str:
    return ", ".join(f"{email} ({role})" for email, role in sorted(measured.users.items())) or "–"


def _pictures(evidence: Evidence) -> list[Block]:
    by_name = {path.stem: path for path in evidence.pictures}
    shown: list[Block] = [
        Picture(title, by_name[name]) for name, title in pictures.SHOWN.items() if name in by_name
    ]
    if not shown:
        said = f"None was taken of this source. A full run takes them, and `{pictures.COMMAND}`."
        return [Text(said)]
    return [
        Text(f"Of the portal, taken by its tests; all {len(by_name)} lie in `var/screens`."),
        *shown,
    ]


def _tests(evidence: Evidence) -> Table:
    tests = {
        name: test for one in (*evidence.cases, *evidence.regression) for name, test in one.tests.items()
    }
    rows = [
        [name, ", ".join(one.cases), one.outcome, one.seconds, when(one.at)]
        for name, one in sorted(tests.items())
    ]
    return Table(["Test", "Cases", "Outcome", "Seconds", "Run at"], rows)
