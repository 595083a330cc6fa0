"""Scrape configuration, alert rules and dashboard: whole, parsed by the real grammar, naming what exists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml

from broker.settings import Settings
from support import docs

PROMETHEUS = docs.ROOT / "ops" / "prometheus"
# What Prometheus itself adds to every series.
ADDED = {"job", "instance", "le"}
INTERVAL = "$__rate_interval"
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}


def loaded(name: str) -> Any:
    return yaml.safe_load((PROMETHEUS / name).read_text("utf-8"))


def rules() -> list[dict[str, Any]]:
    return [rule for group in loaded("alerts.yml")["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return json.loads((docs.ROOT / "ops" / "grafana" / "broker.json").read_text("utf-8"))["panels"]


def expressions() -> Iterator[tuple[str, str]]:
    for rule in rules():
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"].replace(INTERVAL, "5m")


def parts(node: Any) -> Iterator[Any]:
    """A node of the syntax tree and all below it."""
    yield node
    below = [getattr(node, name, None) for name in ("lhs", "rhs", "expr", "param", "vector_selector")]
    for one in [*below, *(getattr(node, "args", None) or [])]:
        if one is not None and not isinstance(one, str):
            yield from parts(one)


def series() -> dict[str, set[str]]:
    """Every series name that processes show, with its labels."""
    found = {"up": set()}
    for name, (kind, labels) in docs.metric_rows().items():
        for suffix in SUFFIXES[kind]:
            found[name + suffix] = labels
        if kind == "counter":
            # When it began to count.
            found[name.removesuffix("_total") + "_created"] = labels
    return found


@pytest.mark.parametrize(
    ("where", "expression"), list(expressions()), ids=[where for where, _ in expressions()]
)
def test_every_query_names_series_and_labels_that_exist(where: str, expression: str) -> None:
    """Parsed as PromQL; metrics, matched labels and labels that are grouped by are those of docs/metrics.md."""
    known = series()
    selectors = [each for each in parts(promql_parser.parse(expression)) if hasattr(each, "matchers")]
    assert selectors
    labels = set(ADDED)
    for selector in selectors:
        assert selector.name in known, where
        labels |= known[selector.name]
        matched = set(re.findall(r"[{,]\s*(\w+)[!=]", str(selector.matchers)))
        assert matched <= known[selector.name] | ADDED, where
    for grouped in re.findall(r"\bby \(([^)]*)\)", expression):
        assert {label.strip() for label in grouped.split(",")} <= labels, where


def test_a_made_up_metric_would_be_seen() -> None:
    """The test above looks at what it says."""
    tree = promql_parser.parse('sum by (role) (rate(broker_made_up_total{role="x"}[5m])) / vector(2) > 0.5')
    assert [each.name for each in parts(tree) if hasattr(each, "matchers")] == ["broker_made_up_total"]
    assert "broker_made_up_total" not in series()


def test_every_alert_says_what_and_what_to_do() -> None:
    """A name of its own, a severity, a summary, a way on; labels in texts are those that the query leaves."""
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert set(rule["annotations"]) == {"summary", "description"}
        assert re.fullmatch(r"\d+m", rule.get("for", "0m"))
        used = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        left = {
            label for group in re.findall(r"\bby \(([^)]*)\)", rule["expr"]) for label in group.split(", ")
        }
        assert used <= left | ADDED, rule["alert"]


def test_commands_of_the_alerts_exist() -> None:
    """Nobody is sent to a command that is not there."""
    text = (PROMETHEUS / "alerts.yml").read_text("utf-8") + (PROMETHEUS / "prometheus.yml").read_text("utf-8")
    commands = list(docs.quoted_commands(text))
    commands += [
        line.lstrip("# ").split()[1:] for line in text.splitlines() if line.startswith("#   broker ")
    ]
    assert len(commands) > 8
    assert [told for words in commands if (told := docs.problem(words))] == []


def test_the_scraped_ports_are_the_settings() -> None:
    """One job for each process that shows metrics, at its default port, by https where that is spoken."""
    default = Settings()
    jobs = {job["job_name"]: job for job in loaded("prometheus.yml")["scrape_configs"]}
    ports = {
        "broker-gateway": default.gateway_port,
        "broker-server": default.server_port,
        "broker-worker": default.worker_metrics_port,
        "broker-projector": default.projector_metrics_port,
    }
    assert set(jobs) == set(ports)
    for name, job in jobs.items():
        assert job["static_configs"][0]["targets"] == [f"localhost:{ports[name]}"]
        assert (job.get("scheme") == "https") == (name in {"broker-gateway", "broker-server"})
        assert ("tls_config" in job) == (job.get("scheme") == "https")
    assert loaded("prometheus.yml")["rule_files"] == ["alerts.yml"]


def test_the_dashboard_is_whole() -> None:
    """Panels have ids of their own, do not overlap, and take their data from the chosen source."""
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["datasource"]["uid"] == "${datasource}"
    assert len({panel["id"] for panel in panels()}) == len(panels())
