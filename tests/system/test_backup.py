"""A running system backed up under load, and brought back by `up` in another directory."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from support.system import System, eventually


async def send(system: System, count: int, body: str) -> list[str]:
    """The ids of messages that the gateway has taken."""
    async with system.client() as client:
        answers = await asyncio.gather(
            *(
                client.post(
                    "/api/v1/messages",
                    json={"sender_number": "+4915200000000", "message_body": f"{body} {n}"},
                )
                for n in range(count)
            )
        )
    assert {answer.status_code for answer in answers} == {202}
    return [answer.json()["message_id"] for answer in answers]


def attempts(system: System, ids: list[str]) -> dict[str, tuple[str, int]]:
    """Status and number of attempts, by message."""
    marks = ",".join(["%s"] * len(ids))
    found = system.query(
        f"SELECT m.message_id,m.status,(SELECT COUNT(*) FROM attempts a WHERE a.message_id=m.message_id) AS n "
        f"FROM messages m WHERE m.message_id IN ({marks})",
        *ids,
    )
    return {row["message_id"]: (row["status"], row["n"]) for row in found}


def recorded(system: System, upto: dict[str, str]) -> list[dict[str, Any]]:
    """The audit log up to a position in each stream."""
    rows = system.query("SELECT * FROM audit_log ORDER BY stream,ms,seq")
    ends = {stream: tuple(map(int, position.split("-"))) for stream, position in upto.items()}
    return [row for row in rows if (row["ms"], row["seq"]) <= ends[row["stream"]]]


@contextmanager
def up(system: System) -> Iterator[None]:
    """`up` on what is there, and down again whatever happens."""
    try:
        system.up()
        yield
    finally:
        system.down()
        for process in psutil.process_iter(["cmdline"]):
            if str(system.data) in " ".join(process.info["cmdline"] or []):
                process.kill()


async def test_backed_up_under_load_and_brought_back(shared_system: System, tmp_path: Path) -> None:
    """⚠ All that was acknowledged before is there; what was open is delivered once, what was delivered never again."""
    system, target = shared_system, tmp_path / "backups"
    (tmp_path / "passphrase").write_text("correct horse battery staple\n")
    options = (str(target), "--passphrase-file", str(tmp_path / "passphrase"), "--json")
    done = await send(system, 10, "before")
    everything = dict.fromkeys(done, ("delivered", 1))
    await eventually(lambda: attempts(system, done) == everything)
    worker = system.members()["worker"]["pid"]
    os.kill(worker, signal.SIGSTOP)
    try:
        waiting = await send(system, 5, "waiting")
        load = asyncio.create_task(send(system, 30, "meanwhile"))
        made = await asyncio.to_thread(system.run, "backup", "create", *options)
        meanwhile = await load
    finally:
        os.kill(worker, signal.SIGCONT)
    assert made.returncode == 0, made.stderr
    backup = json.loads(made.stdout)
    assert backup["open"] >= len(waiting)

    other = System(tmp_path / "restored", retry_interval="1")
    back = await asyncio.to_thread(other.run, "backup", "restore", *options)
    assert back.returncode == 0, back.stderr
    found = json.loads(back.stdout)
    assert (found["events"], found["open"]) == (backup["events"], backup["open"])
    with up(other):
        everything |= dict.fromkeys(waiting, ("delivered", 1))
        await eventually(lambda: attempts(other, [*done, *waiting]) == everything)
        # Those that came meanwhile are there whole or not at all.
        await eventually(lambda: set(attempts(other, meanwhile).values()) <= {("delivered", 1)})
        assert recorded(other, backup["positions"]) == recorded(system, backup["positions"])
        more = await send(other, 3, "after")
        await eventually(lambda: attempts(other, more) == dict.fromkeys(more, ("delivered", 1)))
        assert other.status()["healthy"]
    await system.healthy()

    victim = next(path for path in target.rglob("tail/*"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    verified = await asyncio.to_thread(system.run, "backup", "verify", *options)
    assert verified.returncode == 1
    (one,) = json.loads(verified.stdout)["backups"]
    assert one["problems"] == [f"{victim.relative_to(target)} was changed."]
