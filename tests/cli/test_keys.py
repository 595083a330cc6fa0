"""`keys` against a running system: rotated under load without a gap, nothing lost, nothing shown."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator

import httpx
import pytest

from broker.events.keyring import Keyring
from support.system import System, eventually

OLD, NEW = "+4915211111111", "+4915211111112"


def keys(system: System, *args: str) -> subprocess.CompletedProcess[str]:
    return system.run("keys", *args)


def listed(system: System) -> dict:
    done = keys(system, "list", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def rotated(system: System, *args: str) -> dict:
    done = keys(system, "rotate", *args, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@contextlib.asynccontextmanager
async def admin(system: System) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the server, signed in as the first admin."""
    async with system.client(None, "server_port") as client:
        password = (system.data / "admin-password").read_text().strip()
        given = {"email": "admin@example.com", "password": password}
        answer = await client.post("/portal/auth/login", json=given)
        assert answer.status_code == 200, answer.text
        client.headers["authorization"] = f"Bearer {answer.json()['access_token']}"
        yield client


async def send(client: httpx.AsyncClient, number: str, body: str) -> str:
    answer = await client.post(
        "/api/v1/messages", json={"sender_number": number, "message_body": body}, timeout=30
    )
    assert answer.status_code == 202, answer.text
    return answer.json()["message_id"]


async def test_rotation_under_load(system: System) -> None:
    """Master, clients' and signing keys while messages flow: every one is taken, delivered, readable, and found."""
    async with system.client() as producer, admin(system) as reader:
        before = listed(system)
        first = await send(producer, OLD, "sealed before")
        sent: list[str] = []
        stop = asyncio.Event()

        async def flow() -> None:
            while not stop.is_set():
                sent.append(await send(producer, OLD, "sealed meanwhile"))

        flows = [asyncio.create_task(flow()) for _ in range(4)]
        done = await asyncio.to_thread(rotated, system, "--clients", "--signing", "--master")
        count = len(sent)
        await eventually(lambda: len(sent) > count, what="messages go on")
        stop.set()
        await asyncio.gather(*flows)
        last = await send(producer, OLD, "sealed after")

        after = listed(system)
        assert after["clients"]["demo"]["active"] == before["clients"]["demo"]["active"] + 1
        assert done["clients"]["demo"] == after["clients"]["demo"]["active"]
        assert [key for key, state in after["master"].items() if state == "active"] == [
            done["master"]["key_id"]
        ]
        assert after["signing"][done["signing"]] == "active"
        assert set(before["signing"]) < set(after["signing"])
        # Gateway, server and worker had loaded it before it was used.
        assert len(after["processes"]) >= 3
        assert all(done["master"]["key_id"] in held for held in after["processes"].values())

        # The token from before still lets its bearer in.
        for message_id, body in ((first, "sealed before"), (last, "sealed after")):

            async def shown(message_id: str = message_id) -> dict | None:
                answer = await reader.get(f"/portal/messages/{message_id}?decrypt=true")
                return answer.json() if answer.status_code == 200 else None

            for _ in range(600):
                if (found := await shown()) is not None and found["status"] == "delivered":
                    break
                await asyncio.sleep(0.1)  # the poll itself
            assert (found["message_body"], found["status"]) == (body, "delivered")
        everything = {first, last, *sent}

        async def found_by_number() -> set[str]:
            seen, cursor = set(), ""
            while cursor is not None:
                query = f"search=%2B{OLD[1:]}&per_page=200" + (f"&cursor={cursor}" if cursor else "")
                page = (await reader.get(f"/portal/messages?{query}")).json()
                seen |= {each["message_id"] for each in page["messages"]}
                cursor = page["next"]
            return seen

        assert everything <= await found_by_number()
        statuses = {each["status"] for each in await _all(reader)}
        assert "failed" not in statuses


async def _all(reader: httpx.AsyncClient) -> list[dict]:
    answer = await reader.get("/admin/messages?per_page=200")
    return answer.json()["messages"]


async def test_the_number_is_found_under_every_key(system: System) -> None:
    """Messages of the same number from before and after a rotation have other hashes, and a search finds both."""
    async with system.client() as producer, admin(system) as reader:
        ids = [await send(producer, NEW, "one")]
        rotated(system, "--client", "demo")
        ids.append(await send(producer, NEW, "two"))
        await eventually(
            lambda: len(system.query("SELECT 1 FROM messages WHERE message_id IN (%s,%s)", *ids)) == 2,
            what="both in the table",
        )
        rows = system.query(
            "SELECT sender_number_hashed AS h FROM messages WHERE message_id IN (%s,%s)", *ids
        )
        assert len({row["h"] for row in rows}) == 2
        page = (await reader.get(f"/portal/messages?search=%2B{NEW[1:]}")).json()
        assert {each["message_id"] for each in page["messages"]} == set(ids)


async def test_a_retired_master_key_goes(system: System) -> None:
    """It can be removed once nothing needs it, and everything goes on; an active one cannot."""
    done = rotated(system, "--master")["master"]
    active = keys(system, "remove", done["key_id"], "--yes")
    assert active.returncode == 1
    assert "not a retired master key" in active.stderr
    for key in done["retired"]:
        for answer in ("n\n", ""):
            declined = system.run("keys", "remove", key, input=answer)
            assert (declined.returncode, listed(system)["master"][key]) == (1, "retired")
            assert "Nothing was changed" in declined.stderr
        removed = keys(system, "remove", key, "--yes")
        assert removed.returncode == 0, removed.stderr
    assert list(listed(system)["master"]) == [done["key_id"]]
    async with system.client() as producer, admin(system) as reader:
        await send(producer, OLD, "after the old key is gone")
        assert (await reader.get("/portal/profile")).status_code == 200
    # The key of the digests was sealed by the old one: it is the same as ever, and signs.
    made = system.run("events", "digests", "--make")
    assert (made.returncode, made.stderr) == (0, "")
    used = {json.loads(json.loads(line)["body"])["key"] for line in made.stdout.splitlines()}
    assert len(used) == 1


async def test_after_a_theft(system: System) -> None:
    """`--drop` refuses tokens signed before at once; signing in again works."""
    async with admin(system) as reader:
        assert (await reader.get("/portal/profile")).status_code == 200
        rotated(system, "--signing", "--drop")
        assert (await reader.get("/portal/profile")).status_code == 401
    async with admin(system) as again:
        assert (await again.get("/portal/profile")).status_code == 200
    assert list(listed(system)["signing"].values()) == ["active"]


def test_nothing_is_shown(system: System) -> None:
    """No command prints a key; rotations stand in the history, with who and which."""
    outputs = []
    for args in (("list",), ("rotate", "--client", "demo", "--signing", "--master"), ("list", "--json")):
        done = keys(system, *args)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout + done.stderr)
    ring = Keyring.load(system.settings.keyring_path)
    for key in [ring.index_key, *(each.key for each in ring._contents.keys)]:
        for form in (key.hex(), base64.b64encode(key).decode()):
            assert form not in "".join(outputs)
    rows = system.query("SELECT subject,actor FROM audit_log WHERE type='KeyRotated'")
    assert {row["actor"] for row in rows} == {"system"}
    assert {row["subject"].partition(":")[0] for row in rows} == {"client", "key"}


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (("rotate",), 2, "Say which"),
        (("rotate", "--client", "demo", "--clients"), 2, "not both"),
        (("rotate", "--drop"), 2, "Say which"),
        (("rotate", "--master", "--drop"), 2, "--drop goes with --signing"),
        (("rotate", "--client", "nobody"), 1, "There is no client nobody."),
        (("rotate", "--master", "--wait", "-1"), 2, "--wait"),
        (("remove", "m-00000000", "--yes"), 1, "not a retired master key"),
    ],
)
def test_wrong_use(system: System, args, code, text) -> None:
    """Exit 2 for wrong use, 1 for what cannot be done, and one clear line."""
    done = keys(system, *args)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert text in done.stderr


def test_without_a_system(tmp_path) -> None:
    """Nothing runs: what to run, and nothing is made or changed."""
    for args in (("list",), ("rotate", "--signing"), ("remove", "m-1", "--yes")):
        done = System(tmp_path).run("keys", *args)
        assert done.returncode == 1
        assert "is `broker up` running?" in done.stderr
    assert not list(tmp_path.rglob("token-keys"))
