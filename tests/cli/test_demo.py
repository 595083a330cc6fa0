"""`demo` on a running system."""

from __future__ import annotations

import json
from pathlib import Path

from support.system import System


def test_the_demo_shows_a_delivery_a_retry_and_a_refusal(system: System) -> None:
    """`--full` waits until the retried message is delivered, at its second attempt; nothing is made twice."""
    done = system.run("demo", "--full", "--json")
    assert done.returncode == 0, done.stderr
    delivered, retried, refused = json.loads(done.stdout)
    assert [attempt["outcome"] for attempt in delivered["attempts"]] == ["delivered"]
    assert [attempt["outcome"] for attempt in retried["attempts"]] == ["failed", "delivered"]
    assert (refused["status"], refused["attempt_count"]) == ("failed", 1)

    count = len(json.loads(system.run("cert", "list", "--json").stdout))
    again = system.run("demo")
    assert again.returncode == 0, again.stderr
    assert "waits for retry" in again.stdout
    assert f"broker events show {''}" in again.stdout
    assert len(json.loads(system.run("cert", "list", "--json").stdout)) == count


def test_the_demo_needs_a_running_system(tmp_path: Path) -> None:
    """Without `up` it says so, and makes nothing."""
    done = System(tmp_path).run("demo")
    assert done.returncode == 1
    assert "broker up" in done.stderr
    assert "Traceback" not in done.stderr
