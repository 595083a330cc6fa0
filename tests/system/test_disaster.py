"""Read models lost on a running system, and a database that is empty: both come back from what is archived."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import databases
from support.readmodels import TABLES, rows
from support.system import System, eventually, running


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory):
    with running(
        tmp_path_factory.mktemp("disaster"), archive_segment_seconds=0.3, stream_history=0, retry_interval=1.0
    ) as found:
        yield found


def behind(system: System) -> int:
    """Events of the partitions that are not archived yet."""
    status = json.loads(system.run("archive", "status", "--json").stdout)
    return sum(one["behind"] for one in status)


def unprojected(system: System) -> int:
    """Events that a read model has not taken in yet."""
    return sum(one["events"] for one in json.loads(system.run("projection", "lag", "--json").stdout))


def delivered_in_statistics(found: dict) -> int:
    """Messages, summed over streams, hours and clients."""
    return sum(row[7] for row in found["statistics"])


async def test_tables_dropped_under_a_live_system(system: System) -> None:
    """Every table dropped while messages arrive: one command brings back every row that was there, and the new ones.

    The rows are equal to those before, value by value; nothing is delivered twice.
    """
    await system.send(40)
    await eventually(lambda: system.delivered() == 40)
    await eventually(lambda: behind(system) == 0)
    await eventually(lambda: unprojected(system) == 0)
    before = rows(system.settings.mysql_url)
    assert all(before[name] for name in TABLES)
    for table in TABLES:
        system.query(f"DROP TABLE {table}")
    await system.send(40)
    done = await asyncio.to_thread(system.run, "projection", "rebuild", "--all", "--json")
    assert done.returncode == 0, done.stderr
    assert {one["outcome"] for one in json.loads(done.stdout)} == {"switched"}
    await eventually(lambda: system.delivered() == 80)
    attempts = system.query("SELECT COUNT(*) AS n,COUNT(DISTINCT message_id) AS messages FROM attempts")[0]
    assert attempts == {"n": 80, "messages": 80}
    await eventually(lambda: unprojected(system) == 0)
    after = rows(system.settings.mysql_url)
    for name in ("clients", "certificates", "users"):
        assert after[name] == before[name], name
    for name in ("messages", "attempts", "audit_log"):
        assert set(after[name]) > set(before[name]), name
    assert (len(before["messages"]), len(after["messages"])) == (40, 80)
    assert delivered_in_statistics(after) == 2 * delivered_in_statistics(before) == 80
    done = await asyncio.to_thread(system.run, "projection", "rebuild", "--all", "--no-switch")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(", equal.") == len(TABLES)
    await eventually(lambda: system.status()["healthy"])


async def test_what_is_asked_for(system: System) -> None:
    """A dry run tells how many events and how long, a cancellation that nothing runs, a wrong name which there are."""
    events = system.query("SELECT SUM(events) AS n FROM checkpoints WHERE projection='messages'")[0]["n"]
    done = await asyncio.to_thread(system.run, "projection", "rebuild", "messages", "--dry-run", "--json")
    (found,) = json.loads(done.stdout)
    assert (found["projection"], found["events"], found["tables"]) == ("messages", int(events), ["messages"])
    assert found["seconds"] > 0
    done = await asyncio.to_thread(system.run, "projection", "rebuild", "messages", "--cancel")
    assert (done.returncode, done.stdout) == (0, "No rebuild of it was begun.\n")
    done = await asyncio.to_thread(system.run, "projection", "rebuild", "massages")
    assert done.returncode == 1
    assert "There is no projection massages; there are messages, attempts" in done.stderr
    for wrong in ((), ("messages", "--all"), ("messages", "--log-id", "x")):
        assert (await asyncio.to_thread(system.run, "projection", "rebuild", *wrong)).returncode == 2


STOPPING = """
import asyncio, pathlib, sys
from broker.projections.rebuild import building, run

reached, go = map(pathlib.Path, sys.argv[1:3])
del sys.argv[1:3]
run.Rebuild.__init__.__kwdefaults__["batch"] = 3
commit, done = building.Builder._commit, []


async def stopping(self, stream, entries):
    while len(done) >= 5 and not go.exists():
        await asyncio.sleep(0.01)
    await commit(self, stream, entries)
    done.append(stream)
    if len(done) >= 5:
        reached.touch()


building.Builder._commit = stopping
import broker.cli

broker.cli.main()
"""


class Terminal:
    """A command whose stderr is a terminal."""

    def __init__(self, system: System, *args: str) -> None:
        self._screen, theirs = pty.openpty()
        os.set_blocking(self._screen, False)
        environ = system.environ | {"TERM": "xterm", "COLUMNS": "120"}
        command = [sys.executable, *args, "--data", str(system.data)]
        self.process = subprocess.Popen(
            command, env=environ, stdout=subprocess.PIPE, stderr=theirs, text=True
        )
        os.close(theirs)
        self._seen = b""

    def seen(self) -> str:
        """All that was shown so far, without colours."""
        with contextlib.suppress(BlockingIOError, OSError):
            while found := os.read(self._screen, 65536):
                self._seen += found
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._seen.decode())

    async def ended(self) -> tuple[int, str]:
        """Its exit code and what it wrote to stdout."""
        await eventually(lambda: self.seen() and self.process.poll() is not None)
        said = self.process.stdout.read()
        self.process.stdout.close()
        os.close(self._screen)
        return self.process.returncode, said


@pytest.mark.parametrize("cancel", [False, True])
async def test_at_a_terminal(system: System, tmp_path: Path, cancel: bool) -> None:
    """A bar with rate and time left while it runs; it runs to its end, or ends by another's `--cancel`."""
    await system.send(20)
    await system.quiet()
    await eventually(lambda: unprojected(system) == 0)
    before = rows(system.settings.mysql_url)["messages"]
    reached, go = tmp_path / "reached", tmp_path / "go"
    command = ("-c", STOPPING, str(reached), str(go), "projection", "rebuild", "messages")
    terminal = Terminal(system, *command)
    await eventually(lambda: reached.exists() or terminal.process.poll() is not None)
    shown = re.compile(r"messages .*?(\d+)/(\d+) [\d,]+/s, \d+ s left")
    await eventually(lambda: shown.search(terminal.seen()), what="a bar")
    events, total = map(int, shown.search(terminal.seen()).groups())
    assert 0 < events < total
    if cancel:
        cancelling = asyncio.to_thread(system.run, "projection", "rebuild", "messages", "--cancel")
        task = asyncio.create_task(cancelling)
        await eventually(lambda: system.query("SELECT 1 FROM rebuilds WHERE cancelled=1"))
    go.touch()
    code, said = await terminal.ended()
    if cancel:
        done = await task
        assert (done.returncode, done.stdout) == (0, "Cancelled: messages.\n")
        assert (code, said) == (1, "")
        assert "The rebuild of messages was cancelled." in terminal.seen()
    else:
        assert (code, said.startswith("messages: rebuilt; ")) == (0, True), terminal.seen()
    assert rows(system.settings.mysql_url)["messages"] == before
    assert not system.query("SELECT * FROM rebuilds")
    assert not system.query("SHOW TABLES LIKE %s", r"%\_\_%")


async def test_empty_database_from_the_archive_alone(system: System, mariadb) -> None:
    """⚠ With nothing but the archive and an empty database, one command brings every row back."""
    await eventually(lambda: behind(system) == 0)
    url = databases.create(mariadb)
    elsewhere = System(system.data, mysql_url=url)
    done = await asyncio.to_thread(
        elsewhere.run, "projection", "rebuild", "--all", "--archive-only", "--json"
    )
    assert done.returncode == 0, done.stderr
    await asyncio.to_thread(system.run, "archive", "status")
    found, expected = rows(url), rows(system.settings.mysql_url)
    for name in TABLES:
        if name != "audit_log":
            assert found[name] == expected[name], name
    # What was recorded about the system itself since may not be archived yet.
    assert found["audit_log"]
    assert set(found["audit_log"]) <= set(expected["audit_log"])
    again = await asyncio.to_thread(elsewhere.run, "projection", "list")
    assert again.returncode == 0
    databases.drop(url)
