"""What may go wrong yet, what is wanting, what to do, and the production gate's word with its reasons."""

from __future__ import annotations

from broker.cli.readiness import defects, gate
from broker.cli.readiness.cases import FULL_LENGTH
from broker.cli.readiness.document import Block, Fields, Heading, Points, Table, Text, Verdict
from broker.cli.readiness.evidence import Evidence

FULL_RUN = "`./broker test all --full`"
DAY_SECONDS, DAY_MESSAGES = 86_400, 100_000


def blocks(evidence: Evidence) -> list[Block]:
    """Risks and issues, recommendations, conclusion."""
    return [*_risks(evidence), *_issues(evidence), *_recommendations(evidence), *_conclusion(evidence)]


def _risks(evidence: Evidence) -> list[Block]:
    rows = []
    if short := [f"{case} ({one['form']})" for case, one in evidence.load.items() if not one["full"]]:
        why = f"run in a short form: {'; '.join(short)}"
        rows.append(["A fault that only shows after longer", why, "M", "H", FULL_RUN])
    if unseen := [one.case for one in evidence.cases if one.status == "NOT RUN"]:
        why = f"{len(unseen)} cases have no evidence on this source"
        rows.append(["A fault that no test has looked for", why, "H", "H", FULL_RUN])
    if unsteady := [one for one in defects.of(evidence) if one.status == "unsteady"]:
        why = f"failed and then passed on the same source: {len(unsteady)}"
        rows.append(["A fault that shows now and then", why, "M", "M", "find why, see the low defects"])
    if "TC-L-004" in evidence.load:
        said = "TC-L-004 compresses a day: what takes a day of time, such as nightly jobs, was not seen"
        rows.append(["A fault of a whole day", said, "L", "M", "watch the first day in production"])
    rows.append(
        [
            "Another machine is slower",
            "what was measured holds for this machine and these servers",
            "M",
            "M",
            "run the load cases where it will run",
        ]
    )
    header = ["Risk ID", "Risk", "Why", "Probability", "Impact", "Mitigation"]
    return [
        Heading(2, "Risks and issues"),
        Heading(3, "Risks"),
        Text(
            "From what was and was not measured. H, M and L (high, medium, low) are a first judgement by "
            "fixed rules, for the team to review."
        ),
        Table(header, [[f"R-{number}", *row] for number, row in enumerate(rows, 1)]),
    ]


def _issues(evidence: Evidence) -> list[Block]:
    rows = [["H", *row] for row in _grave(evidence)] + [["M", *row] for row in _lesser(evidence)]
    found: list[Block] = [
        Heading(3, "Issues"),
        Text("What is wanting in the evidence or the installation, beside the defects."),
    ]
    if not rows:
        return [*found, Text("None is known.")]
    table = [
        [f"I-{number}", what, severity, "open", todo] for number, (severity, what, todo) in enumerate(rows, 1)
    ]
    return [*found, Table(["Issue ID", "Issue", "Severity", "Status", "Resolution"], table)]


def _grave(evidence: Evidence) -> list[tuple[str, str]]:
    """What the gate does not let pass; and what to do about it."""
    found = []
    for one in evidence.checks:
        if one.checks is None:
            found.append((f"{one.name} was not run: {one.problem}", "start the installation, report again"))
            continue
        failed = [(name, detail) for name, status, detail in one.checks if status == "failed"]
        found += [(f"{one.name}, {name}: {detail}", "mend it, report again") for name, detail in failed]
    if not evidence.suite.collected.whole:
        found.append(("No run has seen which tests there are", FULL_RUN))
    if missing := len(evidence.suite.not_run):
        found.append((f"{missing} tests were skipped or have not run on this source", FULL_RUN))
    if short := [one.case for one in evidence.cases if one.status == "SHORT FORM"]:
        found.append((f"Shown in a short form only: {', '.join(short)}", FULL_RUN))
    found += [
        (said.removesuffix("."), "find what is slow or lost, run it again") for said in gate.missed(evidence)
    ]
    return found


def _lesser(evidence: Evidence) -> list[tuple[str, str]]:
    """What stops nobody and should be known."""
    found = []
    for one in evidence.checks:
        warned = [(name, detail) for name, status, detail in one.checks or [] if status == "warning"]
        found += [(f"{one.name}, {name}: {detail}", "before it fails") for name, detail in warned]
    for case, figures in evidence.load.items():
        if count := figures.get("samples_missed"):
            found.append((f"{case}: {count} samples of its graphs could not be taken", "run it by itself"))
        if "shared with other tests" in figures["form"]:
            found.append(
                (f"{case} ran beside other tests, which may have slowed it", "`./broker test load --full`")
            )
    if any("changed since" in value for value in evidence.environment.values()):
        found.append(
            ("Files differ from the commit that is checked out", "commit them, or report on a clean one")
        )
    return found


def short_term(evidence: Evidence) -> list[str]:
    """Out of what is missing."""
    todo = []
    if defects.failing(evidence) or defects.broken(evidence):
        todo.append("Mend what fails (see Defects), then run the suites again.")
    unseen = evidence.suite.not_run or not evidence.suite.collected.whole
    if unseen or any(one.status in {"NOT RUN", "SHORT FORM"} for one in evidence.cases):
        todo.append(f"Run {FULL_RUN}; with `-- --missing` it leaves out what passed on this source before.")
    if any(one.checks is None or one.passed < len(one.checks) for one in evidence.checks):
        todo.append(
            "Start the installation (`./broker up --detach`), mend what its checks name, report again."
        )
    if not gate.reasons(evidence):
        todo.append("Install it as docs/operations-linux.md or docs/operations-windows.md says.")
    todo.append("After the deployment run `broker preflight` and `broker smoke` on the machine itself.")
    todo.append("Watch queue, lag and response times with ops/prometheus and ops/grafana from the first day.")
    return todo


def _long_term(evidence: Evidence) -> list[str]:
    """What no run of the suites can show, and what stays right only while somebody does it."""
    burst = evidence.load.get("TC-L-003")
    if burst is not None and "per_second" in burst:
        times = burst["per_second"] * DAY_SECONDS / DAY_MESSAGES
        grows = (
            f"{burst['per_second']:g} messages/s were offered and taken here, {times:.0f} times "
            f"what {DAY_MESSAGES:,} a day come to. "
            "Before the peaks come near that, measure more gateways and workers."
        )
    else:
        grows = "Measure the burst (TC-L-003), and plan gateways and workers by it."
    return [
        grows,
        "Run the load cases again where it is operated, and after every change of machine or servers.",
        "Repeat the whole, with this report, for every release and before every upgrade.",
        "Have backups made daily, and try them: `broker backup verify`, and a restore on another machine.",
        "Renew certificates before they end (`broker cert renew`); rotate the keys (`broker keys rotate`).",
    ]


def _recommendations(evidence: Evidence) -> list[Block]:
    return [
        Heading(2, "Recommendations"),
        Heading(3, "Short term"),
        Points(short_term(evidence), numbered=True),
        Heading(3, "Long term"),
        Points(_long_term(evidence), numbered=True),
    ]


def _conclusion(evidence: Evidence) -> list[Block]:
    reasons = gate.reasons(evidence)
    full = [case for case in FULL_LENGTH if evidence.load.get(case, {}).get("full")]
    text = (
        f"All checks and all {len(evidence.suite.tests)} tests passed, and every case was shown; "
        f"{', '.join(full)} ran in full length."
        if not reasons
        else "It must not go into production, because:"
    )
    found: list[Block] = [Heading(2, "Conclusion"), Heading(3, "Production gate"), Verdict(not reasons)]
    found.append(Text(text))
    if reasons:
        found.append(Points(reasons))
    return [
        *found,
        Heading(3, "Sign-off"),
        Text("To be filled in and signed by hand."),
        *(Fields([(name, ""), ("Date", "")]) for name in ("QA lead", "Technical lead", "Project manager")),
    ]
