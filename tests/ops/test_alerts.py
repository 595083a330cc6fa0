"""The alert rules as Prometheus' own tool evaluates them: each fires at what it names, with its texts, and at nothing less."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from broker.domain.certificates import ROLES
from broker.events.archive.archiver import State as ArchiveState
from broker.projections.status import State
from support import docs, promtool

PROMETHEUS = docs.ROOT / "ops" / "prometheus"
RULES = PROMETHEUS / "alerts.yml"
HISTORIES = sorted(PROMETHEUS.glob("*_test.yml"))
CERTIFICATES = "/etc/prometheus/broker/"


@pytest.fixture(scope="module")
def found() -> Path | str:
    """Where promtool is, or why there is none."""
    try:
        return promtool.find()
    except promtool.NotObtained as error:
        return str(error)


@pytest.fixture
def program(found: Path | str, request: pytest.FixtureRequest) -> Path | None:
    """None where it cannot be had: a parser looks at the rules all the same (test_watching.py), and the run's
    summary says that this was not shown (support/helpers.py).
    """
    if isinstance(found, Path):
        return found
    request.node.user_properties.append(("not shown", f"promtool at the rules of ops/prometheus. {found}"))
    return None


def run(program: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    # Its collector of garbage would take a third of the time.
    environ = os.environ | {"GOGC": "400"}
    return subprocess.run((program, *words), env=environ, capture_output=True, text=True, check=False)


@cache
def rules() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


@cache
def histories() -> list[dict[str, Any]]:
    return [each for path in HISTORIES for each in yaml.safe_load(path.read_text("utf-8"))["tests"]]


def exposed() -> set[str]:
    """Names of everything that a process shows which made all its metrics."""
    script = (
        "from broker.cli import metrics_page; metrics_page.declared()\n"
        "from broker.web import metrics; print(metrics.exposition().decode())"
    )
    # In a process of its own: metrics that tests made are nobody's.
    text = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE)) | set(
        re.findall(r"^(\w+)[ {]", text, re.MULTILINE)
    )


def test_prometheus_takes_rules_and_configuration(program: Path | None, tmp_path: Path) -> None:
    """Whole, with the certificates where they should lie; and it does refuse what is wrong."""
    if program is None:
        return
    done = run(program, "check", "rules", RULES)
    assert (done.returncode, f"{len(rules())} rules found" in done.stdout) == (0, True), done.stderr
    shutil.copy(RULES, tmp_path)
    for name in ("ca.crt", "client.crt", "client.key"):
        (tmp_path / name).touch()
    config = tmp_path / "prometheus.yml"
    text = (PROMETHEUS / "prometheus.yml").read_text("utf-8")
    config.write_text(text.replace(CERTIFICATES, f"{tmp_path}/"))
    done = run(program, "check", "config", config)
    assert done.returncode == 0, done.stderr
    assert f"{len(rules())} rules found" in done.stdout
    config.write_text(text.replace(CERTIFICATES, f"{tmp_path}/").replace("metrics_path", "metric_path"))
    assert "metric_path" in run(program, "check", "config", config).stderr


def test_every_alert_fires_when_it_should(program: Path | None) -> None:
    """The histories beside the rules, evaluated, with labels and texts; not before its time, and at nothing less."""
    if program is None:
        return
    done = run(program, "test", "rules", *HISTORIES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("SUCCESS") == len(HISTORIES)


def test_a_rule_that_waits_for_too_much_would_be_seen(program: Path | None, tmp_path: Path) -> None:
    """The test above looks at what it says: with a value that is never there, an alert is missed."""
    if program is None:
        return
    text = RULES.read_text("utf-8")
    (tmp_path / RULES.name).write_text(text.replace("max(broker_log_full) == 1", "max(broker_log_full) == 2"))
    one = next(each for each in histories() if "log is full" in each["name"])
    changed = tmp_path / "changed_test.yml"
    changed.write_text(yaml.safe_dump({"rule_files": [RULES.name], "tests": [one]}))
    done = run(program, "test", "rules", changed)
    assert (done.returncode, "BrokerLogFull" in done.stdout + done.stderr) == (1, True)


def test_every_alert_has_histories_of_both_kinds() -> None:
    """One in which it fires, one in which it does not although its series are there."""
    fires, quiet = set(), set()
    for history in histories():
        given = {promql_parser.parse(each["series"]).name for each in history["input_series"]}
        for look in history["alert_rule_test"]:
            name = look["alertname"]
            assert set(re.findall(r"\b(?:broker_\w+|up)\b", rules()[name]["expr"])) & given, history["name"]
            (fires if look["exp_alerts"] else quiet).add(name)
    assert fires == quiet == set(rules())


def test_histories_are_of_real_series() -> None:
    """Metrics and labels are those of docs/metrics.md, with the job, and the instance's port, of prometheus.yml."""
    jobs = {
        job["job_name"]: job["static_configs"][0]["targets"][0].rpartition(":")[2]
        for job in yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    }
    known = docs.metric_rows()
    for history in histories():
        for each in history["input_series"]:
            # Without quotes 0x10 is a number in base 16 for some who read it.
            assert isinstance(each["values"], str)
            name, written = re.fullmatch(r"(\w+)\{(.*)\}", each["series"]).groups()
            labels = dict(re.findall(r'(\w+)="([^"]*)"', written))
            job, port = labels.pop("job"), labels.pop("instance").rpartition(":")[2]
            if name == "up":
                assert labels == {}
                continue
            # A second worker of a machine has a port of its own.
            assert port == jobs[job] or (job, port) == ("broker-worker", "9110"), each
            metric = re.sub(r"_bucket$", "", re.sub(r"_created$", "_total", name))
            bucket = {"le"} if name.endswith("_bucket") else set()
            assert set(labels) == known[metric][1] | bucket, each


def test_processes_show_what_the_rules_ask_for() -> None:
    """By name, also when a counter began; and the values of labels that rules and histories name are the code's."""
    text = RULES.read_text("utf-8")
    asked = set(
        re.findall(r"\b(broker_\w+?)(?:_bucket)?\b", " ".join(rule["expr"] for rule in rules().values()))
    )
    assert asked <= exposed()
    written = text + "".join(path.read_text("utf-8") for path in HISTORIES)
    values: defaultdict[str, set[str]] = defaultdict(set)
    for metric, name, value in re.findall(r'(broker_\w+)\{[^}]*?\b(state|outcome|role)=~?"([^"]*)"', written):
        values[f"{metric} {name}"] |= set(value.split("|"))
    assert values.pop("broker_projection_state state") <= set(State)
    assert values.pop("broker_archive_state state") <= set(ArchiveState)
    assert values.pop("broker_delivery_attempts_total outcome") <= {"delivered", "retry", "failed"}
    assert values.pop("broker_certificates_expiring role") <= {*ROLES, "authority"}
    assert {role for found in values.values() for role in found} <= {"gateway", "server"}


def test_alerts_leave_no_text_open() -> None:
    """Every label in a text is there; nothing is said with Go's words for what is missing."""
    expected = [look for history in histories() for look in history["alert_rule_test"]]
    assert "no value" not in str(expected)
    texts = {each["exp_annotations"]["summary"] for look in expected for each in look["exp_alerts"]}
    assert not [text for text in texts if re.search(r"[{}]|  |: $", text)]


@pytest.mark.parametrize("root", [True, False])
def test_what_cannot_be_fetched_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, root: bool
) -> None:
    """With the tool's words and the command; a bare machine's lists are refreshed by whoever may."""
    tools = tmp_path / "tools"
    tools.mkdir()
    calls = tmp_path / "calls"
    for name in ("apt-get", "dpkg-deb"):
        script = tools / name
        script.write_text(f'#!/bin/sh\necho "$*" >> {calls}\necho no such package; exit 100\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setattr(promtool.os, "geteuid", lambda: 0 if root else 1000)
    with pytest.raises(promtool.NotObtained, match=r"no such package.*apt-get download prometheus"):
        promtool.find(tmp_path / "kept")
    words = [call.split(" ", 6)[-1] for call in calls.read_text().splitlines()]
    assert words == (
        ["download prometheus", "update", "download prometheus"] if root else ["download prometheus"]
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(promtool.NotObtained, match="on PATH"):
        promtool.find(tmp_path / "kept")
    # Where it would be kept, nothing can be.
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(promtool.NotObtained, match="could not be kept"):
        promtool.find(calls / "kept")
