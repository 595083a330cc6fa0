"""From nothing to a delivered message, as the README says it."""

from __future__ import annotations

import json
import re
import shlex
import stat
from pathlib import Path

import pytest

from support import curl
from support.system import System, eventually

README = Path(__file__).parents[2] / "README.md"


def readme_curl(system: System) -> list[str]:
    """The README's curl command, against this system's port and certificates."""
    [block] = re.findall(r"```sh\n(curl .*?)```", README.read_text("utf-8"), re.DOTALL)
    command = block.replace("\\\n", " ").replace(
        "localhost:8001", f"localhost:{system.overrides['gateway_port']}"
    )
    return [part.replace("certs/", f"{system.certs}/") for part in shlex.split(command)]


@pytest.mark.case("TC-P-001", "TC-I-001", "TC-I-004", "TC-W-001", "TC-W-003")
async def test_the_readme_s_message_is_delivered_and_seen_everywhere(shared_system: System) -> None:
    """Curl gets 202; the status, `messages` and `audit_log` then all show the message as delivered."""
    accepted = json.loads(curl.run(readme_curl(shared_system)))
    assert accepted["status"] == "queued"
    message_id = accepted["message_id"]

    async with shared_system.client() as client:
        first = await client.get(f"/api/v1/messages/{message_id}")
        assert first.status_code == 200, "never a 404 right after its 202"
        row = await eventually(
            lambda: shared_system.query(
                "SELECT * FROM messages WHERE message_id=%s AND status='delivered'", message_id
            )
        )
        shown = (await client.get(f"/api/v1/messages/{message_id}")).json()
    assert (shown["status"], shown["attempt_count"]) == ("delivered", 1)
    assert row[0]["client_id"] == "demo"
    assert row[0]["attempt_count"] == 1
    assert row[0]["delivered_at"] >= row[0]["queued_at"]
    history = await eventually(
        lambda: (
            (
                rows := shared_system.query(
                    "SELECT type FROM audit_log WHERE subject=%s ORDER BY ms, seq", message_id
                )
            )
            and len(rows) == 3
            and rows
        )
    )
    assert [one["type"] for one in history] == ["MessageSubmitted", "DeliveryAttempted", "Delivered"]


async def test_secrets_are_for_the_owner_only(shared_system: System) -> None:
    """Keys and the first admin's password are readable by nobody else."""
    private = [
        shared_system.data / "admin-password",
        shared_system.settings.keyring_path,
        shared_system.certs / "ca.key",
        *shared_system.certs.glob("services/*.key"),
        *shared_system.certs.glob("clients/*/*.key"),
    ]
    assert len(private) >= 8
    for path in private:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


async def test_up_again_says_that_it_runs(shared_system: System) -> None:
    """`up --detach` can be called at any time; other numbers, or a terminal to hold, are refused in a sentence."""
    before = shared_system.members()
    pid = shared_system.status()["pid"]
    again = shared_system.run("up", "--detach")
    assert again.returncode == 0
    assert f"Everything runs already (PID {pid})" in again.stdout
    assert shared_system.members()["gateway"]["url"] in again.stdout
    for args, says in ((["--detach", "--workers", "2"], "workers = 1, not 2"), ([], "broker down")):
        refused = shared_system.run("up", *args)
        assert refused.returncode == 1
        assert str(pid) in refused.stderr
        assert says in refused.stderr
        assert "Traceback" not in refused.stderr
    assert {name: one["pid"] for name, one in shared_system.members().items()} == {
        name: one["pid"] for name, one in before.items()
    }


@pytest.mark.case("TC-S-009", "TC-S-011")
async def test_no_plain_text_at_rest(shared_system: System) -> None:
    """Body, number and metadata are in no file of Redis or MySQL and in no log, only sealed."""
    secret, number, note = "the-body-marker-7c1f", "+4915299887766", "the-metadata-marker-93ab"
    async with shared_system.client() as client:
        answer = await client.post(
            "/api/v1/messages",
            json={"sender_number": number, "message_body": secret, "metadata": {"note": note}},
        )
        assert answer.status_code == 202
        message_id = answer.json()["message_id"]
        refused = await client.post(
            "/api/v1/messages", json={"sender_number": number, "message_body": secret * 99}
        )
        assert refused.status_code == 400
    [row] = await eventually(
        lambda: shared_system.query(
            "SELECT * FROM messages WHERE message_id=%s AND status='delivered'", message_id
        )
    )
    assert re.fullmatch("[0-9a-f]{64}", row["sender_number_hashed"])
    files = [
        path for path in shared_system.data.rglob("*") if path.is_file() and "admin-password" not in path.name
    ]
    assert any("aof" in path.name for path in files)
    assert any(path.suffix == ".ibd" for path in files)
    for path in files:
        content = path.read_bytes()
        for marker in (secret, number, number.removeprefix("+"), note):
            assert marker.encode() not in content, path
