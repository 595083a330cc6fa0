"""`projection list`, `lag` and `resume` against a running system."""

from __future__ import annotations

import json
from pathlib import Path

from support.system import System, eventually


def table(system: System, command: str) -> list[dict]:
    return json.loads(system.run("projection", command, "--json").stdout)


async def test_checkpoints_and_lag(system: System) -> None:
    """Every projection on every stream it follows, and no lag once everything was applied."""
    system.run("send", "--from", "+4915200000000", "--body", "Hello", "--count", "50", "--wait")
    await system.quiet()
    await eventually(lambda: all(one["events"] == 0 for one in table(system, "lag")), what="no lag")
    listed = {(one["projection"], one["stream"]): one for one in table(system, "list")}
    assert {name for name, _ in listed} >= {
        "messages",
        "attempts",
        "audit_log",
        "clients",
        "users",
        "statistics",
    }
    rows = system.query("SELECT COUNT(*) AS n FROM audit_log")
    assert sum(one["events"] for (name, _), one in listed.items() if name == "audit_log") == rows[0]["n"]
    assert {(one["projection"], one["stream"]) for one in table(system, "lag")} == set(listed)
    assert all(one["seconds"] == 0 and one["halted"] is None for one in table(system, "lag"))


def test_a_halt_is_loud_and_can_be_cleared(system: System) -> None:
    """A halted projection is named with its reason, exit code 1, until it is resumed."""
    system.query("UPDATE checkpoints SET halted='0-1: unknown' WHERE projection='users' AND stream='control'")
    for command in ("list", "lag"):
        done = system.run("projection", command)
        assert done.returncode == 1
        assert "halted: users on stream control: 0-1: unknown" in done.stdout
    assert "Cleared 1 halt" in system.run("projection", "resume", "users").stdout
    assert system.run("projection", "list").returncode == 0
    done = system.run("projection", "resume", "nothing")
    assert done.returncode == 1
    assert "messages" in done.stderr


def test_without_a_database_the_error_asks_for_up(tmp_path: Path) -> None:
    """Nothing answers: the address without the password, and what to run."""
    done = System(tmp_path, mysql_url="mysql://broker:hunter2@127.0.0.1:1/message_system").run(
        "projection", "list"
    )
    assert done.returncode == 1
    assert "is `broker up` running?" in done.stderr
    assert "hunter2" not in done.stderr
