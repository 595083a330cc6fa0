"""The load cases' part of the report: what each had to reach, what it reached, and how it went over time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from broker.cli.readiness.cases import SAME_RUN, TARGETS
from broker.cli.readiness.document import Block, Graph, Heading, Points, Table, Text
from broker.cli.readiness.evidence import CaseResult, Evidence
from broker.cli.readiness.gate import AIMS, Aim

DAY_SECONDS = 86_400
DAY_MESSAGES = 100_000
SERIES = (
    ("per_second", "Messages taken, per second"),
    ("p95_ms", "Response time, 95 % of requests, ms"),
    ("open", "Open messages"),
    ("lag", "Events not projected yet"),
    ("connections", "Connections to the database"),
    ("query_ms", "Slowest query of the sample, ms"),
    ("memory_mib", "Memory of all processes, MiB"),
)
COLUMNS = {
    "per_second": "Throughput/s",
    "average_ms": "avg ms",
    "p50_ms": "p50",
    "p95_ms": "p95",
    "p99_ms": "p99",
    "max_ms": "max",
    "open_peak": "Queue peak",
    "lag_peak": "Lag peak",
    "connections_peak": "Connections",
    "memory_mib_peak": "Memory MiB",
}

TIMES = ("average_ms", "p50_ms", "p95_ms", "p99_ms", "max_ms")

Figures = dict[str, Any]


def results(evidence: Evidence, cases: list[CaseResult], note: Callable[[CaseResult], str]) -> list[Block]:
    """A row a case: target, what was reached, status; `note` where nothing was measured or it failed."""
    rows = []
    for one in cases:
        figures = of(evidence, one.case)
        form, reached = ("–", "–") if figures is None else (_form(figures), achieved(figures))
        if figures is None or one.status in {"FAIL", "NOT RUN"}:
            form = note(one)
        rows.append([one.case, one.title, TARGETS[one.case], form, reached, one.status])
    return [Table(["Case", "What it asks", "Target", "Run", "Reached", "Status"], rows)]


def of(evidence: Evidence, case: str) -> Figures | None:
    """The figures of a case, also where another case's run has them."""
    return evidence.load.get(case) or evidence.load.get(SAME_RUN.get(case, ""))


def _form(figures: Figures) -> str:
    return f"{'full length' if figures['full'] else 'short form'}: {figures['form']}"


def achieved(figures: Figures) -> str:
    """In one line: people or messages and success, response times, the queue, the database, losses."""
    said = []
    if "people" in figures:
        said.append(f"{figures['people']} people at once, {figures['requests']:,} pages")
    messages = figures.get("messages", figures.get("accounted"))
    if messages is not None:
        said.append(f"{messages:,} messages")
    if "success_rate" in figures:
        said.append(f"success {figures['success_rate']:.2%}")
    if "p99_ms" in figures:
        said.append(f"average {figures['average_ms']:.0f} ms, p99 {figures['p99_ms']:.0f} ms")
    if "per_second" in figures:
        said.append(f"{figures['per_second']:g} messages/s")
    if "open_peak" in figures:
        said.append(f"queue at most {figures['open_peak']:,}")
    if "slowest_read_ms" in figures:
        said.append(f"slowest of {figures['reads']:,} reads {figures['slowest_read_ms']} ms")
        said.append(f"slowest query {figures['slowest_query_ms']:.0f} ms")
        said.append(f"at most {figures['connections_peak']} connections")
    if "shares" in figures:
        said.append("parts " + ", ".join(f"{round(count):,}" for count in figures["shares"].values()))
    if "until_settled_s" in figures:
        said.append(f"all delivered and in MySQL after {figures['until_settled_s']:.1f} s")
    if "lost_claims" in figures:
        said.append(f"{round(figures['lost_claims'])} claims lost")
    if "lost" in figures:
        said.append(f"{figures['lost']} lost, {figures['doubled']} doubled")
    return "; ".join(said)


def figures(evidence: Evidence) -> list[Block]:
    """Every case's numbers, what they mean for a day, and the graphs."""
    if not evidence.load:
        return [Heading(4, "Performance"), Text("Nothing was measured on this source.")]
    rows = []
    for case, one in evidence.load.items():
        success = f"{one['success_rate']:.2%}" if "success_rate" in one else "–"
        rows.append([case, success, *(_shown(one.get(name)) for name in COLUMNS)])
    return [
        Heading(4, "Performance"),
        Text("Times in milliseconds, counted from when a request was due, so that stalls are not hidden."),
        Table(["Case", "Success", *COLUMNS.values()], rows),
        *_pages(evidence),
        *_day(evidence),
        *_aims(evidence),
        Text("Graphs are in appendix D."),
    ]


def _pages(evidence: Evidence) -> list[Block]:
    """The portal's pages, each by itself."""
    found: list[Block] = []
    for case, one in evidence.load.items():
        if "pages" not in one:
            continue
        rows = [
            [name, f"{page['requests']:,}", f"{page['success_rate']:.2%}", *(page[key] for key in TIMES)]
            for name, page in one["pages"].items()
        ]
        columns = ["Page", "Requests", "Success", *(COLUMNS[key] for key in TIMES)]
        found += [Heading(4, f"{case}: pages as {one['people']} people got them"), Table(columns, rows)]
    return found


def _shown(value: object) -> object:
    return "–" if value is None else value


def _day(evidence: Evidence) -> list[Block]:
    """What the measured rates mean for the daily target."""
    points = []
    for case in ("TC-L-003", "TC-L-004"):
        one = evidence.load.get(case)
        if one is not None and "per_second" in one:
            a_day = one["per_second"] * DAY_SECONDS
            points.append(
                f"{case}: {one['per_second']:g} messages/s were taken, as offered: that would be "
                f"{a_day:,.0f} a day, {a_day / DAY_MESSAGES:.0f} times the {DAY_MESSAGES:,} asked for."
            )
    return [Points(points)] if points else []


def _aims(evidence: Evidence) -> list[Block]:
    """What the product asks of itself beyond the requirements, and whether a full length reached it."""
    rows = [[aim.case, aim.asked, *_judged(aim, evidence.load.get(aim.case))] for aim in AIMS]
    return [
        Heading(4, "The product's own aims"),
        Text("Beyond what the requirements ask; judged where a case ran in its full length."),
        Table(["Case", "Aim", "Measured", "Result"], rows),
    ]


def _judged(aim: Aim, figures: Figures | None) -> tuple[str, str]:
    if figures is None:
        return "–", "not run"
    if not figures["full"]:
        return aim.reached(figures), "not judged: short form"
    return aim.reached(figures), "missed" if aim.missed(figures) else "reached"


def graphs(evidence: Evidence) -> list[Block]:
    """Throughput, response times, queue, lag, database and memory over time, of every case that has them."""
    found: list[Block] = []
    for case, one in evidence.load.items():
        series = [*one.get("responses", ()), *one.get("series", ())]
        for name, title in SERIES:
            points = [(point["t"], _number(name, point[name])) for point in series if name in point]
            # A flat line says nothing that the table does not, but that nothing was held up.
            if len({value for _, value in points}) > 1 or (points and name == "per_second"):
                found.append(Graph(f"{case}: {title}", points))
    return found or [Text("Nothing was measured over time on this source.")]


def _number(name: str, value: Any) -> float:
    """One number of a sample; of several queries the slowest, of several processes the sum."""
    if isinstance(value, dict):
        return float(max(value.values()) if name == "query_ms" else sum(value.values()))
    return float(value)
