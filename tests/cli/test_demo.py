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


def test_the_demo_is_enough_on_a_fresh_directory(tmp_path: Path) -> None:
    """It makes and starts what is missing, says how to stop it, and shows a delivery; what was stopped stays stopped."""
    own = System(tmp_path / "data")
    own.furnish()
    try:
        done = own.run("demo", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[0]["status"] == "delivered"
        assert "until `broker down`" in done.stderr
        assert own.status()["healthy"]
    finally:
        own.down()
    again = own.run("demo")
    assert again.returncode == 1
    assert "broker up" in again.stderr
    assert "Traceback" not in again.stderr


def test_the_demo_starts_nothing_beside_servers_that_are_named(tmp_path: Path) -> None:
    """Where processes are run by other means it says what is missing, and makes nothing."""
    done = System(tmp_path / "data", redis_url="redis://127.0.0.1:1/0").run("demo")
    assert done.returncode == 1
    assert "broker up" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()
