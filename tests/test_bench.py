"""Every benchmark runs, with a handful of messages, and prints its figures; what they are is not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from broker.projections import catalog

BENCHES = Path(__file__).resolve().parents[1] / "bench"


def bench(name: str, *options: str) -> str:
    """What `broker bench` prints."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("BROKER_")}
    done = subprocess.run(
        [sys.executable, "-m", "broker", "bench", name, *options],
        env=environ,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_benchmark_is_listed_and_documented():
    """`broker bench` names each benchmark, and the table of `bench/README.md` has its command."""
    shown = subprocess.run(
        [sys.executable, "-m", "broker", "bench"], check=True, capture_output=True, text=True
    ).stdout
    listed = {line.split()[0] for line in shown.splitlines()}
    assert listed == {"accept", "audit", "deliver", "e2e", "page", "portal", "project", "replay", "soak"}
    readme = (BENCHES / "README.md").read_text("utf-8")
    assert all(f"`bench {name}" in readme for name in listed)


def test_accept(tmp_path):
    """Acceptance: requests of both servers, the ratio between them, and only 202 as an answer."""
    report = tmp_path / "accept.json"
    shown = bench("accept", "--rounds", "1", "--seconds", "0.3", "--connections", "4", "--json", str(report))
    assert "single POST / empty handler:" in shown
    found = json.loads(report.read_text("utf-8"))
    assert found["ratio_single_to_empty"] > 0
    (measured,) = found["rounds"]
    for one in measured.values():
        assert one["messages_per_second"] > 0
        assert set(one["statuses"]) == {"202"}


def test_deliver():
    """Delivery: commits a second, and that every message had its outcome (the benchmark asserts it)."""
    found = json.loads(bench("deliver", "--messages", "200", "--concurrency", "16"))
    assert found["messages"] == 200
    assert found["commits_per_second"] > 0
    assert found["worker_cpu_us_per_message"] > 0


def test_project():
    """Projection: events a second and each process' share, with every read model."""
    found = json.loads(bench("project", "--messages", "200", "--window", "10"))
    assert found["events"] == 600
    assert found["projections"] == sorted(catalog.names())
    assert found["events_per_second"] > 0
    assert set(found["cpu_microseconds_per_event"]) == {"projector", "mariadb", "valkey"}


def test_project_one_read_model():
    """One read model alone can be measured; streams that it does not read are left alone."""
    found = json.loads(bench("project", "--messages", "40", "--window", "5", "--only", "attempts"))
    assert found["projections"] == ["attempts"]
    assert found["events_per_second"] > 0


def test_replay():
    """Rebuilding: events a second of each read model, for each size."""
    found = json.loads(bench("replay", "--events", "1200,2400"))
    assert set(found) == {"1200", "2400"}
    assert set(found["2400"]) == {"messages", "attempts", "audit_log", "clients", "users", "statistics"}
    assert {one["events"] for one in found["2400"].values()} == {2400}
    assert all(one["events_per_second"] > 0 for one in found["1200"].values())


def test_audit():
    """Export and verification: rates of each form, and that every export was found right (the benchmark asserts it)."""
    found = json.loads(bench("audit", "--messages", "400"))
    assert found["export_jsonl"]["events"] == 1200
    assert found["verify_filtered"]["events"] == 60
    assert all(step["events_per_second"] > 0 for step in found.values())


def test_page():
    """Paging: what each list takes, for several readers at once."""
    found = json.loads(bench("page", "--messages", "600", "--readers", "2", "--pages", "2"))
    assert found


def test_portal():
    """People clicking: what each page takes, and all together."""
    found = json.loads(bench("portal", "--messages", "300", "--people", "5", "--pages", "1", "--pause", "0"))
    assert found["all"]["pages"] >= 40
    assert {
        "dashboard", "overview", "list", "list of all", "failed", "message", "next page", "by number", "history", "event"
    } <= set(found["milliseconds"])  # fmt: skip


def test_end_to_end():
    """Everything at once: latency at a rate, then throughput by batch, memory of every process."""
    found = json.loads(
        bench(
            "e2e", "--messages", "60", "--batch", "20", "--connections", "2",
            "--rate", "20", "--rate-seconds", "1", "--json",
        )
    )  # fmt: skip
    assert found["latency"]["visible"]["p99_ms"] > 0
    throughput = found["throughput"]
    assert throughput["messages"] == 60
    assert throughput["statuses"] == {"202": 3}
    assert throughput["messages_per_second"] > 0
    assert {"gateway", "server", "worker", "projector", "valkey", "mariadb"} <= set(found["memory_mib"])
    assert found["redis_bytes_per_message"] > 0


def test_soak():
    """Memory while messages pass: streams, everything else, the archive, which it verifies at the end."""
    found = json.loads(
        bench("soak", "--messages", "400", "--chunk", "100", "--seconds", "30", "--history", "0", "--json")
    )
    assert found["messages"] == 400
    assert found["events"] >= 1200
    assert found["streams_late_to_early"] > 0
    assert found["archive_mib"] >= 0
