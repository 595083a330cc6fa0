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

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from broker import clock
from broker.events import log_identity
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


def last_backup(system: System) -> float:
    """When it began, by the projector's metrics."""
    shown = httpx.get(f"{system.members()['projector']['url']}/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(shown)}
    return families["broker_backup_last_success_timestamp_seconds"].samples[0].value


async def undelivered(system: System) -> tuple[list[dict[bytes, bytes]], list[int]]:
    """What is open, and how long the stream is, in each partition."""
    redis, partitions = system.redis(), system.keys().partitions
    found = (
        [await redis.hgetall(each.open) for each in partitions],
        [await redis.xlen(each.events) for each in partitions],
    )
    await redis.aclose()
    return found


async def look_at(copy: System, open_messages: int) -> None:
    """`up --inspect`: what reads works, what would accept or deliver refuses, and nothing moves."""
    mistyped = System(copy.data.with_name("restord"))
    nothing = await asyncio.to_thread(mistyped.run, "up", "--detach", "--inspect")
    assert (nothing.returncode, "no installation to look at" in nothing.stderr) == (1, True)
    assert not mistyped.data.exists()
    done = await asyncio.to_thread(copy.run, "up", "--detach", "--inspect")
    assert done.returncode == 0, f"{done.stderr}\n{copy.logs()}"
    assert "For inspection: nothing is accepted, delivered or sent" in done.stdout
    before = await undelivered(copy)
    assert sum(len(each) for each in before[0]) == open_messages
    status = copy.status()
    assert (status["healthy"], status["inspection"]) == (True, True)
    members = copy.members()
    assert members.keys() == {"valkey", "mariadb", "server", "projector", "portal"}
    assert "For inspection" in copy.run("status").stdout
    assert "for inspection" in copy.run("doctor").stdout
    plain = copy.run("up", "--detach")
    assert (plain.returncode, "for inspection; stop it with `broker down`" in plain.stderr) == (1, True)

    async with httpx.AsyncClient(timeout=30) as browser:
        page = await browser.get(f"{members['portal']['url']}/login")
        assert "A copy, for inspection" in page.text
        shown = (await browser.get(f"{members['projector']['url']}/metrics")).text
    # Nothing is archived; nor has it a backup of its own.
    assert "broker_archive_" not in shown
    assert last_backup(copy) == 0
    copy.overrides["server_port"] = httpx.URL(members["server"]["url"]).port
    async with copy.client("services/worker", "server_port") as worker:
        refused = await worker.post("/internal/messages/deliver", json={"deliveries": []})
        password = (copy.data / "admin-password").read_text().strip()
        given = {"email": "admin@example.com", "password": password}
        tokens = (await worker.post("/portal/auth/login", json=given)).json()
        bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
        listed = await worker.get("/admin/messages?status=queued", headers=bearer)
    assert (refused.status_code, refused.json()["error"]) == (503, "inspection_only")
    assert int(refused.headers["Retry-After"]) > 1
    assert listed.json()["total"] == open_messages
    exported = copy.run("export")
    assert exported.returncode == 0, exported.stderr
    assert len(exported.stdout.splitlines()) > open_messages
    verified = copy.run("events", "verify", "--live")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    # Whatever the settings of another shell say.
    for role in ("gateway", "worker"):
        ended = copy.run(role)
        assert (ended.returncode, f"no {role} runs" in ended.stdout + ended.stderr) == (2, True)
    refusal = copy.run(
        "backup", "create", str(copy.data / "no"), "--passphrase-file", str(copy.certs / "ca.crt")
    )
    assert (refusal.returncode, "copy for inspection" in refusal.stderr) == (1, True)
    erase_in_copy(copy)
    assert await undelivered(copy) == before


def erase_in_copy(copy: System) -> None:
    """What is erased there takes nothing of the system's, where the copy was told of a place that both know."""
    assert copy.run("client", "register", "gone", "--no-wait").returncode == 0
    shared = copy.data.parent / "shared"
    kept = shared / log_identity.read_file(copy.settings).log_id / f"gone@1-0.{'0' * 16}"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"keys of the system's own")
    copy.overrides["client_keys_url"] = str(shared)
    erased = copy.run("client", "erase", "gone", "--reason", "a trial", "--yes", "--no-wait")
    del copy.overrides["client_keys_url"]
    assert erased.returncode == 0, erased.stderr
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]


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
    began = clock.parse_iso(backup["began_at"]) / 1000
    await eventually(lambda: last_backup(system) == began, what="the backup in the metrics")

    other = System(tmp_path / "restored", retry_interval="1")
    back = await asyncio.to_thread(other.run, "backup", "restore", *options)
    assert back.returncode == 0, back.stderr
    found = json.loads(back.stdout)
    assert (found["events"], found["open"]) == (backup["events"], backup["open"])
    try:
        await look_at(other, backup["open"])
        # What it shows is what the backup has, to the row.
        positions = backup["positions"]
        await eventually(lambda: recorded(other, positions) == recorded(system, positions))
    finally:
        other.down()
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
