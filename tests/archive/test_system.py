"""The whole system with an archive that seals often and keeps no history: what its users notice, which is nothing."""

from __future__ import annotations

import asyncio
import json

import pytest

from broker.events.archive import storage, verification
from broker.events.archive.store import StreamArchive
from broker.events.log_identity import read_file
from support.system import System, eventually, running


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory):
    with running(
        tmp_path_factory.mktemp("archived"),
        archive_segment_seconds=0.3,
        stream_history=0,
        retry_interval=1.0,
    ) as found:
        yield found


def lengths(system: System) -> dict[str, int]:
    return {
        one["stream"]: one["length"] for one in json.loads(system.run("streams", "info", "--json").stdout)
    }


async def test_messages_pass_while_redis_stays_empty(system: System) -> None:
    """Delivered, in the tables, in the archive; Redis keeps one event a stream; projector killed in between."""
    async with system.client() as client:
        for turn in range(3):
            sent = [
                client.post(
                    "/api/v1/messages",
                    json={"sender_number": "+4915200000000", "message_body": f"{turn} {n}"},
                )
                for n in range(40)
            ]
            assert {answer.status_code for answer in await asyncio.gather(*sent)} == {202}
            if turn == 1:
                await system.back("projector", system.kill("projector"))
    await eventually(
        lambda: system.query("SELECT COUNT(*) AS n FROM messages WHERE status='delivered'")[0]["n"] == 120
    )
    await eventually(lambda: max(lengths(system).values()) == 1, what="streams cut")
    recorded = system.query("SELECT COUNT(*) AS n FROM audit_log")[0]["n"]
    log = read_file(system.settings)
    where = storage.opened(system.settings)
    found = [verification.verify(StreamArchive(where, log.log_id, stream)) for stream in log.incarnations]
    assert {one.damage for one in found} == {None}
    # All but those since: nothing of it is counted twice.
    assert sum(one.events for one in found) >= recorded >= 360
    assert system.status()["healthy"]


def test_events_that_left_the_log_are_shown(system: System) -> None:
    """`events show` answers from the audit log, by message and by position, what was cut from the streams."""
    message = system.query("SELECT subject FROM audit_log WHERE type='Delivered' ORDER BY ms LIMIT 1")[0]
    recorded = system.query(
        "SELECT HEX(hash) AS hash FROM audit_log WHERE subject=%s ORDER BY ms,seq", message["subject"]
    )
    shown = system.run("events", "show", message["subject"], "--json").stdout.splitlines()
    assert [json.loads(line)["hash"].upper() for line in shown] == [row["hash"] for row in recorded]
    position = json.loads(shown[0])["id"]
    assert system.run("events", "show", position, "--json").stdout.splitlines() == shown[:1]


async def test_restart_on_cut_streams(system: System) -> None:
    """Stopped and started again, everything goes on where it stood; a resumed system takes and delivers."""
    system.down()
    system.up()
    done = system.run("send", "--from", "+4915200000000", "--body", "again", "--wait")
    assert done.returncode == 0, done.stderr
    assert system.run("archive", "verify").returncode == 0
    assert system.run("archive", "status").returncode == 0
