"""The readiness report: what counts as evidence, what the gate says, and how it reads."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import msgspec
import pytest

from broker.cli.readiness import (
    components,
    defects,
    document,
    evidence,
    failures,
    gate,
    installation,
    load,
    pictures,
    report,
    summary,
)
from broker.cli.readiness.cases import CASES, FULL_LENGTH, REGRESSION, SAME_RUN, TARGETS
from broker.cli.readiness.evidence import Checks, Collected, Evidence, Linted, Outcome, Suite
from broker.embedded.state import running
from support import casebook
from support.load import clicking, offering, results
from support.waiting import wait_until

SOURCE = "0123456789abcdef"
ROOT = Path(__file__).resolve().parents[2]


def ran(
    *cases: str, outcome: str = "passed", source: str = SOURCE, said: str = "", full: bool = True
) -> Outcome:
    return Outcome(list(cases), outcome, 1.5, time.time(), source, said, full)


def seen(tests: dict[str, Outcome], *, whole: bool = True, **more: list[str]) -> Collected:
    """All these tests and more, as a run collected them."""
    return Collected(SOURCE, whole=whole, tests={name: one.cases for name, one in tests.items()} | more)


def figures(case: str, *, full: bool = True, **changes: object) -> dict:
    series = [{"t": t, "open": t * 2, "lag": 1, "connections": 9} for t in range(4)]
    made = {"case": case, "full": full, "form": "1/s", "success_rate": 1.0, "p99_ms": 20.0, "lost": 0}
    made |= {"average_ms": 5.0, "rate": 100, "per_second": 99.5, "accounted": 4, "open_peak": 7}
    made |= {"until_settled_s": 90.0} if case == "TC-L-004" else {}
    return made | {"doubled": 0, "series": series, "messages": 4} | changes


def passing(**changes: object) -> Evidence:
    """Evidence that says DEPLOY, with these changes."""
    tests = {f"tests/test_{case}.py::test": ran(case) for case in CASES}
    tests |= {f"tests/test_{case}.py::test": ran(case) for case in REGRESSION}
    tests |= {"tests/test_beside.py::test": ran()}
    tests |= changes.pop("tests", {})
    collected = changes.pop("collected", {})
    collected = seen(tests, **collected)
    current = {name: one for name, one in tests.items() if one.source == SOURCE}
    linters = {name: Linted(SOURCE, True, 0) for name in evidence.LINTERS} | changes.pop("linters", {})
    load = changes.pop("load", {case: figures(case) for case in FULL_LENGTH})
    made = Evidence(
        source=SOURCE,
        cases=evidence.case_results(tests, collected, load),
        load=load,
        checks=[
            Checks(name, [(f"check {number}", "ok", "fine") for number in range(count)])
            for name, count in gate.CHECKS.items()
        ],
        environment={"Python": "3.11"},
        suite=Suite(collected, current, linters),
        at=0,
        regression=evidence.regression_results(tests, collected),
    )
    return msgspec.structs.replace(made, **changes)


def test_every_case_of_the_requirements_is_known() -> None:
    """92 cases, numbered without gaps in each kind."""
    kinds: dict[str, list[int]] = {}
    for case in CASES:
        _, kind, number = case.split("-")
        kinds.setdefault(kind, []).append(int(number))
    assert {kind: len(numbers) for kind, numbers in kinds.items()} == {
        "P": 10, "M": 15, "W": 10, "PT": 15, "I": 14, "L": 11, "S": 17}  # fmt: skip
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in kinds.values())


def test_marks_name_cases_that_there_are() -> None:
    """No test claims a case that is not among the 92 and the regression's; each of these has a test."""
    marked = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for found in re.findall(r"mark\.case\(([^)]*)\)", path.read_text("utf-8")):
            marked |= set(re.findall(r'"([A-Z]+-[^"]+)"', found))
    assert marked == {*CASES, *REGRESSION}


def test_all_shown_in_full_says_deploy() -> None:
    """Every case passed on this source, full lengths, all checks: DEPLOY, and no reason against it."""
    found = passing()
    assert gate.reasons(found) == []
    assert "**DEPLOY**" in document.markdown(report.blocks(found))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tests": {"other": ran("TC-S-003", outcome="failed")}}, "Security: 1 failed: TC-S-003."),
        ({"tests": {"tests/test_TC-I-001.py::test": ran("TC-I-001", outcome="skipped")}},
         "Integration: 1 not run on this source: TC-I-001."),
        ({"tests": {"tests/test_TC-M-004.py::test": ran("TC-M-004", source="another")}},
         "Functional: 1 not run on this source: TC-M-004."),
        ({"load": {}}, "TC-L-001: not run in its full length"),
        ({"load": {case: figures(case, full=False) for case in FULL_LENGTH}}, "TC-L-003: not run in its full"),
        ({"load": {case: figures(case, lost=3) for case in FULL_LENGTH}}, "TC-L-002: 3 messages lost."),
        ({"load": {case: figures(case, doubled=1) for case in FULL_LENGTH}}, "TC-L-001: 1 messages doubled."),
        ({"load": {case: figures(case, success_rate=0.94) for case in FULL_LENGTH}}, "TC-L-001: success rate"),
        ({"load": {case: figures(case, p99_ms=5001) for case in FULL_LENGTH}}, "TC-L-001: p99 5001 ms"),
        ({"load": {case: figures(case, p95_ms=3001) for case in FULL_LENGTH}}, "TC-L-001: p95 3001 ms"),
        ({"load": {case: figures(case, average_ms=1001) for case in FULL_LENGTH}}, "TC-L-001: average 1001 ms"),
        ({"tests": {"other": ran("REG-PORTS", outcome="failed")}}, "Port changes work correctly: failed."),
        ({"tests": {"tests/test_REG-DATABASE.py::test": ran("REG-DATABASE", source="another")}},
         "Database configuration changes work correctly: not run on this source."),
        ({"checks": [Checks("preflight", None, "no answer"), Checks("smoke", [("x", "ok", "")] * 9)]},
         "preflight: not run. no answer."),
        ({"checks": [Checks("preflight", [("x", "ok", "")] * 7), Checks("smoke", [("Redis", "failed", "")] * 9)]},
         "smoke: Redis"),
        ({"checks": [Checks("preflight", [("x", "ok", "")] * 6), Checks("smoke", [("x", "ok", "")] * 9)]},
         "preflight: 6 checks answered, 7 are asked for."),
        ({"tests": {"tests/x.py::t": ran(outcome="failed")}}, "Tests beside the cases: 1 failed: tests/x.py::t."),
        ({"tests": {"tests/x.py::t": ran(outcome="skipped")}}, "All tests: 1 of 97 not run on this source: tests"),
        ({"tests": {"tests/x.py::t": ran(source="another")}}, "All tests: 1 of 97 not run on this source: tests"),
        ({"collected": {"tests/x.py::t": []}}, "All tests: 1 of 97 not run on this source: tests/x.py::t."),
        ({"collected": {"whole": False}}, "All tests: no run on this source has seen which there are"),
        ({"collected": {"whole": False}}, "Security: 17 not run on this source: TC-S-001 to TC-S-017."),
        ({"collected": {"tests/x.py::t": ["TC-S-003"]}}, "Security: 1 not run on this source: TC-S-003."),
        ({"linters": {"mypy --strict": Linted(SOURCE, False, 0, "3 errors")}}, "mypy --strict: failed."),
        ({"tests": {"tests/test_TC-L-001.py::test": ran("TC-L-001", full=False)}}, "TC-L-001: not run in its full"),
    ],
)  # fmt: skip
def test_whatever_is_missing_or_failed_says_do_not_deploy(changes: dict, reason: str) -> None:
    """A failure, a case without evidence, a short form, a loss, a check: each is a reason by itself."""
    found = passing(**changes)
    assert any(one.startswith(reason) for one in gate.reasons(found)), gate.reasons(found)
    assert "**DO NOT DEPLOY**" in document.markdown(report.blocks(found))


def test_failures_beside_the_cases_and_of_linters_are_defects() -> None:
    """With what they said, by severity; and what part of a case's tests ran stands beside it."""
    found = passing(
        tests={"tests/x.py::t": ran(outcome="failed", said="it broke"), "tests/y.py::t": ran("TC-S-001")},
        collected={"tests/z.py::t": ["TC-S-001"]},
        linters={"mypy --strict": Linted(SOURCE, False, 0, "3 errors")},
    )
    text = document.markdown(report.blocks(found))
    high, medium = (part(text, f"{severity} defects") for severity in ("High", "Medium"))
    assert "| Tests | tests/x.py::t: it broke | open | none yet" in high
    assert "| Source | mypy --strict: 3 errors | open | none yet" in medium
    assert "None." in part(text, "Critical defects")
    [line] = [line for line in text.splitlines() if line.startswith("| TC-S-001 | Mutual")]
    assert line.endswith("| NOT RUN | 2 of 3 tests |")
    assert "None is open" in document.markdown(report.blocks(passing()))


def part(text: str, heading: str) -> str:
    """What stands below a heading, up to the next."""
    return re.split(r"^#+ ", text.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def test_what_failed_once_stays_known(tmp_path: Path) -> None:
    """Open while it fails, fixed by another source, unsteady where nothing was mended; a month later it is gone."""
    broken, whole = ran("TC-P-001", outcome="failed", said="no"), ran("TC-P-001", source="mended")
    defects.note(tmp_path, {"tests/a/x.py::t": broken, "mypy --strict": Linted(SOURCE, False, 1.0, "error")})
    defects.note(tmp_path, {"tests/a/y.py::t": msgspec.structs.replace(broken, cases=[])})
    later = msgspec.structs.replace(whole, at=broken.at + 5)
    same = msgspec.structs.replace(later, source=SOURCE)
    skipped = msgspec.structs.replace(later, outcome="skipped")
    defects.note(tmp_path, {"tests/a/x.py::t": skipped, "tests/a/never.py::t": later})
    assert {one.passed_at for one in failures.read(tmp_path).values()} == {None}
    defects.note(tmp_path, {"tests/a/x.py::t": later, "tests/a/y.py::t": same})
    text = document.markdown(report.blocks(passing(failures=failures.read(tmp_path))))
    assert "| Gateway | tests/a/x.py::t: no (TC-P-001) | fixed | it passes since source mended |" in part(
        text, "High defects"
    )
    assert "| a | tests/a/y.py::t: no | unsteady | none: it passed later on the same" in part(
        text, "Low defects"
    )
    assert "| Source | mypy --strict: error | not run since |" in part(text, "Medium defects")
    counts = part(text, "Defect metrics")
    assert "| Defects found | 3 |" in counts
    assert "| Low | 1, of which 1 open |" in counts
    assert "| Defects fixed | 1 (33%) |" in counts
    assert "| A fault that shows now and then |" in part(text, "Risks")
    assert gate.reasons(passing(failures=failures.read(tmp_path))) == []
    again = msgspec.structs.replace(broken, at=later.at + 1)
    defects.note(tmp_path, {"tests/a/x.py::t": again})
    assert failures.read(tmp_path)["tests/a/x.py::t"].passed_at is None
    month = msgspec.structs.replace(same, at=same.at + defects.KEEP_SECONDS + 1)
    defects.note(tmp_path, {"another": month})
    assert set(failures.read(tmp_path)) == {"tests/a/x.py::t", "mypy --strict"}


TEMPLATE = {
    "": ["Test cycle", "Report date", "Prepared by"],
    "Summary": ["Overall status"],
    "Hardware": [],
    "Software": ["Python"],
    "Versions": ["Gateway", "Server", "Worker", "Projector", "Portal", "Redis", "MySQL"],
    "Network": ["Gateway", "Server", "Portal", "Redis", "MySQL"],
    "Functional tests": ["Execution date", "Duration", "Status"],
    "Integration tests": ["Execution date", "Duration", "Status", "TC-I-014"],
    "Load tests": ["Execution date", "Duration", "Status", "TC-L-011"],
    "Performance": ["Throughput/s", "avg ms", "p95", "p99", "Success", "Queue peak"],
    "Security tests": ["Execution date", "Duration", "Status", "TC-S-017"],
    **{f"{severity} defects": [] for severity in defects.SEVERITIES},
    "Coverage": ["Cases", "Cases: passed", "Cases: failed", "Cases: skipped or not run"],
    "Defect metrics": ["Defects found", *defects.SEVERITIES, "Defects fixed", "Defects open"],
    "Efficiency": ["Test execution time", "Defects found per hour", "Test pass rate"],
    "Risks": ["Risk ID", "Probability", "Impact", "Mitigation", "R-1"],
    "Issues": [],
    "Short term": ["1."],
    "Long term": ["1.", "5."],
    "Production gate": ["DEPLOY"],
    "Sign-off": ["QA lead", "Technical lead", "Project manager", "Date"],
    "A. Test logs": ["logs/functional.log", "logs/integration.log", "logs/load.log", "logs/security.log"],
    "B. Test data": ["Users created", "Clients created", "reader@example.com (user)", "acme, demo", "1,234"],
    "C. Screenshots": ["None was taken", "--screenshots"],
    "D. Performance graphs": ["graphs/tc-l-001-open-messages.svg"],
}


def test_every_field_of_the_template_is_there() -> None:
    """Filled from what is known; what only people know is a line to be filled in, and nothing invented."""
    seen = components.Seen({"Gateway": "https://127.0.0.1:8001"}, {"Gateway": "1.2.3", "Redis": "Valkey 8"})
    suite = components.Measured(
        "load", SOURCE, 0, components.Seen({}, {"MySQL": "MariaDB 11"}),
        {"reader@example.com": "user"}, ["acme", "demo"], 1234,
    )  # fmt: skip
    text = document.markdown(report.blocks(passing(seen=seen, measured=[suite])))
    for heading, fields in TEMPLATE.items():
        below = part(text, heading) if heading else text.partition("## Summary")[0]
        assert below, heading
        assert [field for field in fields if field not in below] == [], heading
    assert "| Gateway | not seen | 1.2.3 |" in part(text, "Versions")
    assert "| MySQL | MariaDB 11 | not seen |" in part(text, "Versions")
    assert "| Gateway | https://127.0.0.1:8001 |" in part(text, "Network")
    assert text.count(document.BLANK) == 8
    assert "**Overall status**: PASS" in text
    assert "None is known." in part(text, "Issues")


def test_what_the_overall_status_is() -> None:
    """FAIL with a failure, IN PROGRESS while nothing more than evidence is missing."""
    assert summary.overall(passing(load={})) == "IN PROGRESS"
    assert summary.overall(passing(tests={"tests/x.py::t": ran(outcome="failed")})) == "FAIL"
    assert summary.overall(passing(load=passing().load | {"TC-L-005": figures("TC-L-005", lost=1)})) == "FAIL"
    down = [Checks("preflight", [("x", "failed", "")] * 7), Checks("smoke", [("x", "ok", "")] * 9)]
    assert summary.overall(passing(checks=down)) == "FAIL"
    text = document.markdown(report.blocks(passing(checks=down, load={})))
    assert "| I-1 | preflight, x:  | H | open | mend it, report again |" in part(text, "Issues")
    assert "Shown in a short form only: TC-L-001, TC-L-002, TC-L-003, TC-L-004" in part(text, "Issues")


def test_the_report_is_saved_with_what_it_names(tmp_path: Path) -> None:
    """Every file that the Markdown links to lies beside it: graphs, logs, screenshots."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("x = 1\n")
    for name in ("1440-boss-light", "360-lost-light"):
        pictures.directory(tmp_path).mkdir(parents=True, exist_ok=True)
        (pictures.directory(tmp_path) / f"{name}.png").write_bytes(b"a picture")
    found = passing(
        tests={"tests/x.py::t": ran("TC-W-002", outcome="failed", said="one\ntwo")},
        pictures=pictures.taken(tmp_path, evidence.source_files(tmp_path)),
    )
    document.save(tmp_path / "out", report.blocks(found), report.TITLE)
    text = (tmp_path / "out" / "report.md").read_text("utf-8")
    named = re.findall(r"\]\(([^)]+)\)", text)
    assert len(named) >= 10
    assert [name for name in named if not (tmp_path / "out" / name).is_file()] == []
    log = (tmp_path / "out" / "logs" / "functional.log").read_text("utf-8")
    assert re.search(r"Z FAILED +1.50 s tests/x.py::t \[TC-W-002\]\n    one\n    two\n", log)
    assert "tests/test_beside.py" in (tmp_path / "out" / "logs" / "other.log").read_text("utf-8")
    drawn = (tmp_path / "out" / "graphs" / "tc-l-001-open-messages.svg").read_text("utf-8")
    assert drawn.startswith('<svg xmlns="http://www.w3.org/2000/svg" ')
    assert "TC-L-001: Open messages</text>" in drawn
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert 'src="data:image/png;base64,YSBwaWN0dXJl"' in page
    os.utime(tmp_path / "src" / "a.py", (2e9, 2e9))
    assert pictures.taken(tmp_path, evidence.source_files(tmp_path)) == []


def test_answers_are_shown_over_time() -> None:
    """By when they were due; a time that is cut short counts for as long as it was, and a long run has few points."""
    offered = offering.Offered(10, 2.5)
    offered.requests = [offering.Request(0.010 + due / 100, 202, ["id"], due / 10) for due in range(25)]
    offered.requests[3].ids = []
    found = offered.over_time()
    assert [(one["t"], one["per_second"], one["p95_ms"]) for one in found] == [
        (0.0, 9.0, 100.0), (1.0, 10.0, 200.0), (2.0, 10.0, 250.0),
    ]  # fmt: skip
    offered = offering.Offered(1, 3600)
    offered.requests = [offering.Request(0.010, 202, ["id"], due) for due in range(3600)]
    assert len(offered.over_time()) == offering.MOMENTS
    assert {one["per_second"] for one in offered.over_time()} == {1.0}
    shown = load.graphs(passing(load={"TC-L-001": {"responses": offered.over_time()}}))
    assert [block.title for block in shown] == ["TC-L-001: Messages taken, per second"]


def test_addresses_are_told_without_what_is_secret() -> None:
    """Neither names nor passwords nor paths."""
    told = {
        "redis://:secret@cache.example:6380/0": "cache.example:6380",
        "mysql://broker:secret@[::1]:3306/message_system": "::1:3306",
        "unix:///var/lib/broker/valkey/socket": "a socket in the data directory",
        "mysql://broker:secret@localhost/x?unix_socket=/var/my.sock": "a socket in the data directory",
    }
    assert {url: components._plain(url) for url in told} == told


def test_a_warning_is_shown_and_does_not_fail() -> None:
    """As for the command: it exits 0."""
    checks = [
        Checks(name, [("Certificates", "warning", "end soon"), *[("x", "ok", "")] * (count - 1)])
        for name, count in gate.CHECKS.items()
    ]
    found = passing(checks=checks)
    assert gate.reasons(found) == []
    assert "| Certificates | WARNING | end soon |" in document.markdown(report.blocks(found))


async def test_where_nothing_runs_the_report_asks_a_system_of_its_own(tmp_path: Path, monkeypatch) -> None:
    """Started for it, asked, and stopped; servers that the settings name are asked themselves."""
    with installation.to_ask(tmp_path / "nowhere", lambda _: None) as asked:
        assert "started for this report" in asked.said
        assert asked.data is not None
        assert running(asked.data) is not None

        def all_passed() -> bool:
            found = evidence.gather(ROOT, data=asked.data, environ=asked.environ, problem=asked.problem)
            return {one.name: one.passed for one in found.checks} == gate.CHECKS

        # A busy machine may hold a process up for long enough that it does not call itself well.
        await wait_until(all_passed, within=120, what="all checks pass")
        seen = await components.look(asked.settings())
        assert set(seen.addresses) == set(seen.versions) == set(components.NAMES)
        assert seen.addresses["Portal"].startswith("http://127.0.0.1:")
        assert re.fullmatch(r"(Valkey|Redis) \d+\.\d.*", seen.versions["Redis"])
        assert re.match(r"(MariaDB|MySQL) \d+\.\d", seen.versions["MySQL"])
        told = await components.measured(asked.settings(), "suite", SOURCE, 0.0)
        assert (told.users, told.clients, told.messages) == ({"admin@example.com": "admin"}, ["demo"], 0)
    away = await components.look(msgspec.structs.replace(asked.settings(), data_dir=tmp_path / "nowhere"))
    assert away.versions == {}, "and nothing is made by asking"
    assert not asked.data.exists()
    assert not (tmp_path / "nowhere").exists()
    monkeypatch.setenv("BROKER_REDIS_URL", "redis://localhost:1")
    with installation.to_ask(tmp_path / "nowhere", lambda _: None) as asked:
        assert asked == installation.Asked(tmp_path / "nowhere")


def test_ids_that_follow_on_one_another_are_shortened() -> None:
    """What has not run at all fits on a line."""
    ids = ["TC-P-001", "TC-P-002", "TC-P-003", "TC-P-005", "TC-P-006", "TC-M-007"]
    assert gate._runs(ids) == ["TC-P-001 to TC-P-003", "TC-P-005", "TC-P-006", "TC-M-007"]
    found = msgspec.structs.replace(passing(), cases=evidence.case_results({}, Collected(SOURCE), {}))
    assert "Security: 17 not run on this source: TC-S-001 to TC-S-017." in gate.reasons(found)


def test_a_success_rate_of_bursts_may_be_lower() -> None:
    """The burst case asks for 90 %, the sustained ones for 95 %."""
    load = {case: figures(case) for case in FULL_LENGTH} | {
        "TC-L-003": figures("TC-L-003", success_rate=0.91)
    }
    [reason] = gate.reasons(passing(load=load))
    assert "is asked" not in reason, "only the product's own aim is missed"


def test_a_case_in_its_short_form_is_not_passed() -> None:
    """An hour's case of fifteen seconds, or one whose figures are lost: shown as such, and counted as such."""
    load = {case: figures(case, full=case != "TC-L-001") for case in FULL_LENGTH[:2]}
    found = passing(load=load)
    statuses = {one.case: one.status for one in found.cases}
    assert [statuses[case] for case in FULL_LENGTH] == ["SHORT FORM", "PASS", "SHORT FORM", "SHORT FORM"]
    text = document.markdown(report.blocks(found))
    assert re.search(r"\| Load \| 11 \| 8 \| 0 \| 3 \| 0 \| 73% \|", text)
    assert "no evidence for production: TC-L-001, TC-L-003, TC-L-004." in text


def test_a_peak_may_be_answered_slowly() -> None:
    """More is offered than can be taken: its messages must arrive, that is all."""
    load = passing().load | {"TC-L-005": figures("TC-L-005", p99_ms=9000.0, average_ms=4000.0)}
    assert gate.reasons(passing(load=load)) == []
    load["TC-L-005"]["lost"] = 1
    assert gate.reasons(passing(load=load)) == ["TC-L-005: 1 messages lost."]


def test_load_cases_say_what_they_had_to_reach_and_what_they_reached() -> None:
    """A target for each, figures also where another case's run has them, and what the rate means for a day."""
    assert set(TARGETS) == {case for case in CASES if case.startswith("TC-L-")}
    assert {*SAME_RUN, *SAME_RUN.values()} <= set(TARGETS)
    shared = figures("TC-L-009", shares={"worker-1": 2.0, "worker-2": 2.0}, lost_claims=0.0)
    text = document.markdown(report.blocks(passing(load=passing().load | {"TC-L-009": shared})))
    [line] = [line for line in text.splitlines() if line.startswith("| TC-L-006 | Worker")]
    assert "parts 2, 2; 0 claims lost" in line
    [line] = [line for line in text.splitlines() if line.startswith("| TC-L-001 | Sustained")]
    assert "3,600 messages in an hour" in line
    assert "4 messages; success 100.00%; average 5 ms, p99 20 ms" in line
    assert "TC-L-004: 99.5 messages/s were taken, as offered: that would be 8,596,800 a day" in text


def test_people_at_the_portal_are_shown_page_by_page() -> None:
    """How many at once, how quickly each page came; a slow or failing one is a reason not to deploy."""
    seen = clicking.Clicked(12, 60)
    seen.clicks = [clicking.Click("dashboard", 0.010 * number, 200, True) for number in (1, 2, 3)]
    seen.clicks.append(clicking.Click("profile", 0.5, 503, False))
    told = {"case": "TC-L-010", "full": True, "form": "12 readers for 60 s", **seen.figures()}
    found = passing(load=passing().load | {"TC-L-010": told})
    text = document.markdown(report.blocks(found))
    [line] = [line for line in text.splitlines() if line.startswith("| TC-L-010 | Concurrent")]
    assert (
        "| full length: 12 readers for 60 s | 12 people at once, 4 pages; success 75.00%; average 140 ms"
        in line
    )
    assert "| dashboard | 3 | 100.00% | 20.0 | 20.0 | 30.0 | 30.0 | 30.0 |" in text
    assert "| profile | 1 | 0.00% | 500.0 | 500.0 | 500.0 | 500.0 | 500.0 |" in text
    assert gate.reasons(found) == ["TC-L-010: success rate 75.0%, at least 95% is asked."]
    slow = passing(load=passing().load | {"TC-L-010": told | {"success_rate": 1.0, "p95_ms": 3001.0}})
    assert gate.reasons(slow) == ["TC-L-010: p95 3001 ms, at most 3000 ms is asked."]


def test_a_load_case_that_failed_or_has_no_figures_says_so() -> None:
    """By the tests that failed, or by how many there are."""
    failed = {"tests/load/x.py::t": ran("TC-L-001", outcome="failed", said="too slow")}
    text = document.markdown(report.blocks(passing(tests=failed)))
    [line] = [line for line in text.splitlines() if line.startswith("| TC-L-001 | Sustained")]
    assert "| failed: tests/load/x.py::t | 4 messages" in line
    assert line.endswith("| FAIL |")
    [line] = [line for line in text.splitlines() if line.startswith("| TC-L-008 | Multiple")]
    assert line.endswith("| 1 test | – | PASS |")


def test_figures_of_the_full_length_stay(tmp_path: Path) -> None:
    """A short run after a full one takes nothing away; on another source it does."""
    (tmp_path / "src").mkdir()

    def measured() -> tuple[str, bool]:
        found = evidence.load_figures(tmp_path, evidence.source_digest(tmp_path))["TC-L-001"]
        return found["form"], found["full"]

    results.record("TC-L-001", full=False, form="short", figures={}, root=tmp_path)
    assert measured() == ("short", False)
    for full, form in ((True, "an hour"), (False, "short"), (True, "another hour")):
        results.record("TC-L-001", full=full, form=form, figures={}, root=tmp_path)
    assert measured() == ("another hour", True)
    results.record("TC-L-001", full=False, form="short", figures={}, root=tmp_path)
    assert measured() == ("another hour", True)
    (tmp_path / "src" / "a.py").write_text("x = 1\n")
    results.record("TC-L-001", full=False, form="short", figures={}, root=tmp_path)
    assert measured() == ("short", False)


def test_the_report_shows_failures_figures_and_graphs_harmlessly() -> None:
    """Both forms hold every case, what a failed test said, the figures and a graph; hostile text stays text."""
    said = "<script>alert(1)</script> | pipe"
    found = passing(tests={"tests/x.py::t": ran("TC-W-002", outcome="failed", said=said)})
    blocks = report.blocks(found)
    page, text = document.html(blocks, report.TITLE), document.markdown(blocks)
    for case in CASES:
        assert case in page
        assert case in text
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "\\| pipe" in text
    assert "\\<script>" in text
    assert "| <script>" not in text
    assert page.count("<polyline") >= 4
    assert "<code>./broker test all --full</code>" in document.html(report.blocks(passing(load={})), "x")
    assert "http://" not in page
    assert "https://" not in page
    assert "TC-L-004 compresses a day" in text


def test_evidence_is_read_as_the_suites_left_it(tmp_path: Path) -> None:
    """Results and figures of this source are read; what another source measured counts as not run."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("x = 1\n")
    source = evidence.source_digest(tmp_path)
    tests = {"a": ran("TC-P-001", source=source), "b": ran("TC-P-002", source="old")}
    path = evidence.results_file(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(msgspec.json.encode(evidence.Results(tests)))
    evidence.load_directory(tmp_path).mkdir(parents=True)
    for case, where in (("TC-L-001", source), ("TC-L-002", "old")):
        content = json.dumps(figures(case, source=where))
        (evidence.load_directory(tmp_path) / f"{case}.json").write_text(content)
    evidence.write(evidence.collected_file(tmp_path), Collected(source, True, {"a": ["TC-P-001"], "c": []}))
    linters = {"ruff check": Linted(source, True, 0), "mypy --strict": Linted("old", False, 0)}
    evidence.write(evidence.linters_file(tmp_path), linters)
    found = evidence.gather(tmp_path, problem="nothing runs")
    assert set(found.suite.linters) == {"ruff check"}
    assert found.suite.not_run == ["c"]
    statuses = {one.case: one.status for one in found.cases}
    assert (statuses["TC-P-001"], statuses["TC-P-002"], statuses["TC-P-003"]) == (
        "PASS",
        "NOT RUN",
        "NOT RUN",
    )
    assert set(found.load) == {"TC-L-001"}
    assert [one.name for one in found.checks] == ["preflight", "smoke"]
    assert all(one.checks is None and one.problem == "nothing runs" for one in found.checks)
    (tmp_path / "src" / "a.py").write_text("x = 2\n")
    assert evidence.source_digest(tmp_path) != source


def phase(name: str, when: str, outcome: str, cases: list[str], said: str = "") -> pytest.TestReport:
    return pytest.TestReport(
        name,
        ("x.py", 1, name),
        {},
        outcome,
        said or None,
        when,
        user_properties=[("cases", cases)],
        duration=0.5,
    )


def test_a_run_keeps_the_worst_of_each_test(tmp_path: Path) -> None:
    """A test that fails in its set-up or tear-down failed, also where it shows no case; seconds add up."""
    book = casebook.Casebook(tmp_path)
    for when in ("setup", "call", "teardown"):
        book.pytest_runtest_logreport(phase("passes", when, "passed", ["TC-P-001"]))
        book.pytest_runtest_logreport(phase("no case", when, "failed", []))
        broken = "failed" if when == "teardown" else "passed"
        book.pytest_runtest_logreport(phase("breaks late", when, broken, ["TC-P-002"], "it broke"))
        first = {"setup": "failed", "call": "passed", "teardown": "passed"}[when]
        book.pytest_runtest_logreport(phase("breaks early", when, first, ["TC-P-003"]))
    kept = {name: (one.outcome, one.cases) for name, one in book.records.items()}
    assert kept == {
        "passes": ("passed", ["TC-P-001"]),
        "no case": ("failed", []),
        "breaks late": ("failed", ["TC-P-002"]),
        "breaks early": ("failed", ["TC-P-003"]),
    }
    assert book.records["passes"].seconds == 1.5
    assert book.records["breaks late"].said == "it broke"


def test_outcomes_are_kept_while_the_tests_run(tmp_path: Path, monkeypatch) -> None:
    """What has ended is on disk, what is under way is not; after a change of the source nothing more is."""
    (tmp_path / "src").mkdir()
    monkeypatch.setattr(casebook, "KEEP_SECONDS", -1.0)
    book = casebook.Casebook(tmp_path)
    for name in ("first", "second"):
        book.pytest_runtest_logreport(phase(name, "setup", "passed", ["TC-P-001"]))
    book.pytest_runtest_logreport(phase("first", "teardown", "passed", ["TC-P-001"]))
    assert set(evidence.read_results(tmp_path).tests) == {"first"}
    book.pytest_runtest_logreport(phase("second", "call", "failed", ["TC-P-001"], "no"))
    book.pytest_sessionfinish()
    kept = evidence.read_results(tmp_path).tests
    assert {name: one.outcome for name, one in kept.items()} == {"first": "passed", "second": "failed"}
    (tmp_path / "src" / "a.py").write_text("x = 1\n")
    book.pytest_runtest_logreport(phase("third", "setup", "passed", ["TC-P-001"]))
    book.pytest_runtest_logreport(phase("third", "teardown", "passed", ["TC-P-001"]))
    assert set(evidence.read_results(tmp_path).tests) == {"first", "second"}


def test_a_short_pass_takes_no_full_failure_away(tmp_path: Path) -> None:
    """Nor the length of a full pass; a short failure does count, and a full run decides anew."""

    def then(outcome: str, *, full: bool) -> tuple[str, bool]:
        book = casebook.Casebook(tmp_path, full=full)
        for when in ("setup", "call", "teardown"):
            book.pytest_runtest_logreport(
                phase("t", when, outcome if when == "call" else "passed", ["TC-L-001"])
            )
        book.pytest_sessionfinish()
        kept = evidence.read_results(tmp_path).tests["t"]
        return kept.outcome, kept.full

    assert then("passed", full=False) == ("passed", False)
    assert then("failed", full=True) == ("failed", True)
    assert then("passed", full=False) == ("failed", True)
    assert then("passed", full=True) == ("passed", True)
    assert then("passed", full=False) == ("passed", True)
    assert then("failed", full=False) == ("failed", False)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("x = 1\n")
    assert then("passed", full=False) == ("passed", False)


def test_a_test_that_ends_its_process_failed_its_cases(tmp_path: Path) -> None:
    """Its report knows nothing of it: what was collected does. A file that cannot be read failed, until it can."""
    source = evidence.source_digest(tmp_path)
    casebook.Collecting(tmp_path, source).keep({"f.py::t": ["TC-W-006"]}, whole=True)
    book = casebook.Casebook(tmp_path)
    lost = pytest.TestReport("f.py::t", ("f.py", None, "f.py"), {}, "failed", "worker 'gw1' crashed", "???")
    book.pytest_runtest_logreport(lost)
    book.pytest_collectreport(pytest.CollectReport("g.py", "failed", "SyntaxError", []))
    book.pytest_sessionfinish()
    kept = evidence.read_results(tmp_path).tests
    assert {name: (one.outcome, one.cases, one.said) for name, one in kept.items()} == {
        "f.py::t": ("failed", ["TC-W-006"], "worker 'gw1' crashed"),
        "g.py": ("failed", [], "SyntaxError"),
    }
    book = casebook.Casebook(tmp_path)
    for when in ("setup", "call", "teardown"):
        book.pytest_runtest_logreport(phase("g.py::t", when, "passed", []))
    book.pytest_sessionfinish()
    assert set(evidence.read_results(tmp_path).tests) == {"f.py::t", "g.py::t"}


def test_which_tests_there_are_is_known_from_a_look_at_all(tmp_path: Path) -> None:
    """Parts add up and never make a whole; after the whole a part changes nothing; another source begins anew."""
    (tmp_path / "src").mkdir()
    source = evidence.source_digest(tmp_path)
    there = casebook.Collecting(tmp_path, source)
    there.keep({"a": ["TC-P-001"]}, whole=False)
    there.keep({"b": []}, whole=False)
    assert evidence.read_collected(tmp_path, source) == Collected(source, False, {"a": ["TC-P-001"], "b": []})
    there.keep({"a": ["TC-P-001"], "c": []}, whole=True)
    there.keep({"d": []}, whole=False)
    assert evidence.read_collected(tmp_path, source) == Collected(source, True, {"a": ["TC-P-001"], "c": []})
    (tmp_path / "src" / "a.py").write_text("x = 1\n")
    changed = evidence.source_digest(tmp_path)
    there.keep({"e": []}, whole=True)
    assert evidence.read_collected(tmp_path, changed) == Collected(changed)


SUITE = """
import os, pytest

@pytest.mark.case("TC-W-006")
def test_ends_its_process():
    os._exit(3)

@pytest.mark.case("TC-P-001")
def test_passes():
    pass

def test_beside_the_cases():
    assert False, "broken"
"""


def test_a_spread_run_keeps_every_test(tmp_path: Path) -> None:
    """By itself, in processes: one that ends its process, one of no case, one left out; a part is no whole."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(SUITE)
    # With the options that every run of ours has.
    options = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]["ini_options"]
    given = "\n".join([json.dumps(options["addopts"]), 'markers = ["case"]'])
    (tmp_path / "pyproject.toml").write_text(f"[tool.pytest.ini_options]\naddopts = {given}\n")
    plugin = "from pathlib import Path\nfrom support import casebook\ncasebook.ROOT = Path(__file__).parent\n"
    (tmp_path / "elsewhere.py").write_text(f"{plugin}from support.casebook import *\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT / "tests"), str(ROOT / "src")])

    def run(*args: str) -> tuple[Collected, dict[str, Outcome]]:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "elsewhere", "-p", "no:cacheprovider", *args],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        source = evidence.source_digest(tmp_path)
        assert done.returncode in {0, 1}, done.stdout + done.stderr
        return evidence.read_collected(tmp_path, source), evidence.read_results(tmp_path).tests

    collected, tests = run("tests/test_it.py", "-k", "test_passes")
    assert not collected.whole
    assert {name: one.outcome for name, one in tests.items()} == {"tests/test_it.py::test_passes": "passed"}
    collected, tests = run("tests", "-n", "1", "-k", "not test_passes")
    assert collected.whole
    assert {name.rpartition("::")[2]: cases for name, cases in collected.tests.items()} == {
        "test_ends_its_process": ["TC-W-006"], "test_passes": ["TC-P-001"], "test_beside_the_cases": [],
    }  # fmt: skip
    found = {name.rpartition("::")[2]: (one.outcome, one.cases) for name, one in tests.items()}
    assert found == {
        "test_ends_its_process": ("failed", ["TC-W-006"]),
        "test_passes": ("passed", ["TC-P-001"]),
        "test_beside_the_cases": ("failed", []),
    }
    kept = {name.rpartition("::")[2]: one.passed_at for name, one in failures.read(tmp_path).items()}
    assert kept == {"test_ends_its_process": None, "test_beside_the_cases": None}


def test_what_passed_before_can_be_left_out(tmp_path: Path) -> None:
    """On this source only, and for a full run only what ran in full."""
    (tmp_path / "src").mkdir()
    source = evidence.source_digest(tmp_path)
    tests = {
        "passed": ran("TC-P-001", source=source),
        "failed": ran("TC-P-001", outcome="failed", source=source),
        "other source": ran("TC-P-001", source="another"),
        "in full": ran("TC-L-001", source=source),
        "in short": ran("TC-L-002", source=source, full=False),
        "failed in full": ran("TC-L-008", outcome="failed", source=source),
        "other load in short": ran("TC-L-007", source=source, full=False),
        "beside the cases": ran(source=source, full=False),
    }
    path = evidence.results_file(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(msgspec.json.encode(evidence.Results(tests)))
    results.record("TC-L-001", full=True, form="an hour", figures={}, root=tmp_path)
    # Kept before the test judged it: the figures are of the full length, what passed was short.
    results.record("TC-L-002", full=True, form="ten minutes", figures={}, root=tmp_path)
    in_any = {"passed", "in full", "in short", "other load in short", "beside the cases"}
    assert casebook._passed(tmp_path, full=False) == in_any
    assert casebook._passed(tmp_path, full=True) == {"passed", "in full", "beside the cases"}


def test_a_run_may_be_of_a_section_only() -> None:
    """`--sections` takes the tests of their cases, whatever else is named."""
    inside, outside = "test_certificates.py", "test_ids.py"
    tests = [str(path) for path in (ROOT / "tests").rglob("test_*.py") if path.name in {inside, outside}]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "--sections", "security", *tests],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert inside in done.stdout, done.stdout + done.stderr
    assert outside not in done.stdout


@pytest.mark.parametrize(
    ("sections", "quick", "taken"),
    [
        (set(), False, ["plain", "safe", "fast", "both"]),
        ({"security"}, False, ["safe", "both"]),
        ({"load"}, False, ["fast"]),
        ({"load", "functional"}, False, ["fast", "both"]),
        (set(), True, ["plain", "both"]),
    ],
)
def test_what_is_asked_for(
    request: pytest.FixtureRequest, sections: set[str], quick: bool, taken: list[str]
) -> None:
    """`--quick` leaves load out, and what shows only security; what shows something else besides stays."""
    cases = {"plain": [], "safe": ["TC-S-001"], "fast": ["TC-L-001"], "both": ["TC-S-001", "TC-W-001"]}
    item = request.node
    found = [name for name, own in cases.items() if casebook._asked_for(item, own, sections, quick=quick)]
    assert found == taken


@pytest.mark.parametrize(
    ("case", "missed", "said"),
    [
        ("TC-L-001", {"success_rate": 0.9997}, "success rate 99.970%"),
        ("TC-L-003", {"p99_ms": 251.0}, "p99 251 ms"),
        ("TC-L-004", {"until_settled_s": 120.1}, "all delivered and in MySQL after 120.1 s"),
    ],
)
def test_the_products_own_aims_are_judged_in_full_length(case: str, missed: dict, said: str) -> None:
    """99.99 % success, p99 of 250 ms in the burst, a day within 120 s: a reason where a full length missed it."""
    text = document.markdown(report.blocks(passing()))
    assert text.count("| reached |") == len(gate.AIMS)
    found = passing(load=passing().load | {case: figures(case, **missed)})
    [reason] = gate.reasons(found)
    assert reason.startswith(f"{case}: {said}, the product's own aim is ")
    text = document.markdown(report.blocks(found))
    [line] = [line for line in text.splitlines() if line.endswith("| missed |")]
    assert said in line
    short = passing(load=passing().load | {case: figures(case, full=False, **missed)})
    assert not any("own aim" in reason for reason in gate.reasons(short))
    assert "| not judged: short form |" in document.markdown(report.blocks(short))


def test_an_aim_that_was_not_measured_is_missed() -> None:
    """Figures of a full length without the time until all was delivered are no evidence for it."""
    unmeasured = figures("TC-L-004")
    del unmeasured["until_settled_s"]
    [reason] = gate.reasons(passing(load=passing().load | {"TC-L-004": unmeasured}))
    assert reason.startswith("TC-L-004: not measured, the product's own aim is ")
