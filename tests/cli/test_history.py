"""`events tail` and `events show` against a running system."""

from __future__ import annotations

import json
import subprocess
import sys

import msgspec
import pytest

from broker.domain import ids
from broker.events.exported import ExportedLine
from support.system import System, eventually

NUMBER = "+4915299999999"
BODY = "a body that nobody may read"


def lines(text: str) -> list[ExportedLine]:
    return [msgspec.json.decode(line, type=ExportedLine) for line in text.splitlines()]


@pytest.fixture
def message_id(system: System) -> str:
    """A delivered message."""
    done = system.run("send", "--from", NUMBER, "--body", BODY, "--wait", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["message_id"]


def test_tail_prints_the_exported_form(system: System, message_id: str) -> None:
    """One JSON object a line, chained by hash as in the audit log; body, number and hashes of it withheld."""
    done = system.run("events", "tail", "--subject", message_id, "--json")
    found = lines(done.stdout)
    assert [event.type for event in found] == ["MessageSubmitted", "DeliveryAttempted", "Delivered"]
    submitted = found[0]
    assert (submitted.subject, submitted.actor) == (message_id, "client:demo")
    assert submitted.id.startswith(f"{submitted.stream}:")
    assert set(submitted.data["sealed"]) == set(submitted.data["number_hash"]) == {"withheld"}
    assert submitted.data["sealed"]["withheld"].startswith("sha256:")
    assert BODY not in done.stdout
    assert NUMBER not in done.stdout
    assert found[1].previous_hash is not None
    assert found[2].previous_hash == found[1].hash


async def test_hashes_are_those_of_the_audit_log(system: System, message_id: str) -> None:
    """What tail prints before and after the audit log has the event is the same, and what the table holds."""
    found = lines(system.run("events", "tail", "--subject", message_id, "--json").stdout)
    await eventually(lambda: len(_rows(system, message_id)) == 3, what="audit rows")
    assert [(row["hash"].hex(), row["previous_hash"].hex()) for row in _rows(system, message_id)] == [
        (event.hash, event.previous_hash) for event in found
    ]


def _rows(system: System, message_id: str) -> list[dict]:
    return system.query("SELECT * FROM audit_log WHERE subject=%s ORDER BY ms,seq", message_id)


def test_filters(system: System, message_id: str) -> None:
    """By type, client, stream and number; what does not exist is wrong use."""
    found = lines(system.run("events", "tail", "--type", "Delivered", "-n", "3", "--json").stdout)
    # A message of another test may be delivered at its second attempt meanwhile.
    assert {event.type for event in found} == {"Delivered"}
    assert message_id in {event.subject for event in found}
    control = lines(
        system.run("events", "tail", "--stream", "control", "--client", "demo", "-n", "1000", "--json").stdout
    )
    assert {event.type for event in control} >= {"ClientRegistered", "CertIssued"}
    assert all(event.stream == "control" and event.data["client_id"] == "demo" for event in control)
    for wrong in (("--type", "Nothing"), ("--stream", "9")):
        assert system.run("events", "tail", *wrong).returncode == 2


def test_people_read_a_line_an_event(system: System, message_id: str) -> None:
    """Without --json: time, position, type, subject; no colours into a pipe."""
    out = system.run("events", "tail", "--subject", message_id).stdout.splitlines()
    assert len(out) == 3
    assert all(message_id in line for line in out)
    assert "\x1b" not in "".join(out)


def test_follow_prints_what_is_appended(system: System) -> None:
    """`--follow` goes on with new events, linked to what was there before."""
    command = [sys.executable, "-m", "broker", "events", "tail", "--follow", "--json", "-n", "0"]
    with subprocess.Popen(
        [*command, "--type", "Delivered", "--data", str(system.data)],
        env=system.environ, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            # Messages are sent until the first is seen: whatever came before tail stood ready is not its concern.
            seen: list[str] = []
            import threading

            reader = threading.Thread(target=lambda: seen.append(process.stdout.readline()))
            reader.start()
            while reader.is_alive():
                system.run("send", "--from", NUMBER, "--body", BODY, "--wait")
                reader.join(0.2)
        finally:
            process.terminate()
    event = lines(seen[0])[0]
    assert event.type == "Delivered"
    assert event.hash is not None


async def test_show(system: System, message_id: str) -> None:
    """A message's events, or one by its position, are the same before and after the audit log has them."""
    found = lines(system.run("events", "show", message_id, "--json").stdout)
    assert [event.type for event in found] == ["MessageSubmitted", "DeliveryAttempted", "Delivered"]
    shown = system.run("events", "show", found[0].id).stdout
    assert "MessageSubmitted" in shown
    assert "withheld (sha256:" in shown
    assert lines(system.run("events", "show", found[0].id, "--json").stdout) == found[:1]
    await eventually(lambda: len(_rows(system, message_id)) == 3, what="audit rows")
    assert lines(system.run("events", "show", message_id, "--json").stdout) == found


def test_what_is_not_there(system: System) -> None:
    """An unknown position or message is exit code 1 with a clear line, as is what is neither."""
    for what in ("0:1-0", ids.text(ids.new(0)), "nonsense"):
        done = system.run("events", "show", what)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert done.stderr.startswith("Error: ")
