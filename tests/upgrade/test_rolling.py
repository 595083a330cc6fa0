"""Two releases at once on one log and one database: each delivers, reads and shows what the other wrote."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import pytest

from broker import client as clients
from broker import preparation
from broker.client import Message
from broker.embedded.mariadb import MariaDB
from broker.embedded.valkey import Valkey
from broker.events import connection
from broker.events.keys import LogKeys
from broker.projections import schema
from broker.settings import load
from broker.web import tls
from support import databases, releases
from support.installation import PORTS
from support.releases import OURS, Mixed, Release
from support.waiting import wait_until

NUMBER = "+4915200000000"
LOG = "t-rolling"
WRITERS, READERS = ("gateway", "worker"), ("server", "projector")
EACH = 5


@dataclass
class Rolled:
    """What two phases left: the installation, its database, and every message by its phase."""

    installation: Mixed
    url: str
    sent: dict[str, list[str]] = field(default_factory=dict)
    probes: list[str] = field(default_factory=list)
    """Messages that showed whether a change had arrived."""
    shown: dict[str, set[str]] = field(default_factory=dict)
    """The ids that the server's list showed, by phase."""

    @property
    def accepted(self) -> set[str]:
        return {*self.probes, *(one for ids in self.sent.values() for one in ids)}


async def send(installation: Mixed, count: int) -> list[str]:
    """Submit messages in one batch; their ids."""
    url = f"https://localhost:{installation.ports['gateway_port']}"
    async with clients.connect(url, installation.certs, "demo") as producer:
        results = await producer.batch([Message(NUMBER, f"number {index}") for index in range(count)])
    return [one.message_id for one in results]


def statuses(url: str) -> dict[str, tuple[str, int]]:
    """Status and attempts of each message in the table."""
    with databases.connected(url) as link, link.cursor() as cursor:
        cursor.execute("SELECT message_id, status, attempt_count FROM messages")
        return {message: (status, attempts) for message, status, attempts in cursor.fetchall()}


async def listening(installation: Mixed) -> None:
    """Every role that runs answers at its port."""
    wanted = [installation.ports[name] for name in PORTS if name.partition("_")[0] in installation.running]

    async def answers() -> bool:
        for port in wanted:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return False
            writer.close()
        return True

    await wait_until(answers, within=120, what="every role listens")


async def settled(rolled: Rolled, ids: list[str], attempts: int) -> None:
    """All of them delivered, in so many attempts, as the tables say."""
    expected = dict.fromkeys(ids, ("delivered", attempts))
    await wait_until(
        lambda: expected.items() <= statuses(rolled.url).items(), within=120, what="delivered, and projected"
    )


def listed(installation: Mixed) -> set[str]:
    """Every message that the server shows an admin."""
    password = (installation.data / "admin-password").read_text("utf-8").strip()
    context = tls.client_context(installation.certs / "ca.crt")
    with httpx.Client(
        base_url=f"https://localhost:{installation.ports['server_port']}", verify=context, timeout=60
    ) as server:
        answer = server.post("/portal/auth/login", json={"email": "admin@example.com", "password": password})
        assert answer.status_code == 200, answer.text
        bearer = {"Authorization": f"Bearer {answer.json()['access_token']}"}
        answer = server.get("/admin/messages", params={"per_page": 100}, headers=bearer)
        assert answer.status_code == 200, answer.text
        return {one["message_id"] for one in answer.json()["messages"]}


async def route(installation: Mixed, channel: str, target: str | None = None) -> None:
    """Change it with our code, whichever release the roles are of."""
    async with preparation.opened(load(environ=installation.environ)) as tools:
        await tools.clients.change_route("demo", channel, target=target, actor="system")


async def followed(rolled: Rolled, attempts: int) -> None:
    """Until the worker has seen a route's change: a message takes as many attempts as that makes it."""
    while True:
        [message] = await send(rolled.installation, 1)
        rolled.probes.append(message)

        def delivered(message: str = message) -> tuple[str, int] | None:
            found = statuses(rolled.url).get(message)
            return found if found is not None and found[0] == "delivered" else None

        if await wait_until(delivered, within=120, what="delivered") == ("delivered", attempts):
            return


async def phase(rolled: Rolled, name: str, writers: Release, readers: Release) -> None:
    """One release accepts and delivers, the other serves the inbox and projects."""
    made = rolled.installation
    made.start_of(writers, *WRITERS)
    made.start_of(readers, *READERS)
    await listening(made)
    if left := rolled.sent.get("left open"):
        await settled(rolled, left, 2)
        await route(made, "inbox")
        await followed(rolled, 1)
    rolled.sent[name] = await send(made, EACH)
    await settled(rolled, rolled.sent[name], 1)
    rolled.shown[name] = await asyncio.to_thread(listed, made)


async def roll(made: Mixed, url: str, before: Release) -> Rolled:
    """The release before sets up; ours migrates; then each writes what the other reads."""
    rolled = Rolled(made, url)
    done = before.broker("prepare", **made.environ)
    assert done.returncode == 0, done.stderr
    settings = load(environ=made.environ)
    schema.migrate(url)
    assert await preparation.prepare(settings) == [], "what the release before made is whole to ours"
    await phase(rolled, "ours writes", OURS, before)
    await route(made, "simulated", "failures=1")
    await followed(rolled, 2)
    # Stopped in the middle of their retries.
    rolled.sent["left open"] = await send(made, EACH)
    made.stop_all()
    await phase(rolled, "ours reads", before, OURS)
    made.stop_all()
    return rolled


@pytest.fixture(scope="module")
def rolled(
    before: Release, valkey: Valkey, mariadb: MariaDB, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rolled]:
    url = databases.create(mariadb)
    made = Mixed(
        tmp_path_factory.mktemp("rolling") / "data", redis_url=valkey.url, mysql_url=url, log_name=LOG
    )
    made.environ["BROKER_RETRY_INTERVAL"] = "1"
    try:
        yield asyncio.run(roll(made, url, before))
    finally:
        made.close()
        databases.drop(url)


def test_each_delivers_and_projects_what_the_other_wrote(rolled: Rolled) -> None:
    """Through the inbox at once, left open by one and retried by the other: every message, and no other."""
    expected = {
        message: ("delivered", 2 if name == "left open" else 1)
        for name, ids in rolled.sent.items()
        for message in ids
    }
    found = statuses(rolled.url)
    assert len(expected) == 3 * EACH
    assert {message: found[message] for message in expected} == expected
    assert set(found) == rolled.accepted
    assert {status for status, _ in found.values()} == {"delivered"}


def test_each_shows_what_the_other_wrote(rolled: Rolled) -> None:
    """The server of either release lists every message of either."""
    first = set(rolled.sent["ours writes"])
    assert rolled.shown["ours writes"] == first
    assert rolled.shown["ours reads"] == rolled.accepted


async def test_nothing_is_lost_or_doubled(rolled: Rolled, valkey: Valkey) -> None:
    """Each message ended once; every event of the log is in the audit log; nothing stays open."""
    redis, keys = connection.connect(valkey.url), LogKeys(LOG, 4)
    events = sum([await redis.xlen(stream.events) for stream in keys.streams])
    left = [await redis.hlen(partition.open) for partition in keys.partitions]
    await redis.aclose()
    with databases.connected(rolled.url) as link, link.cursor() as cursor:
        cursor.execute("SELECT subject, COUNT(*) FROM audit_log WHERE type = 'Delivered' GROUP BY subject")
        ends = dict(cursor.fetchall())
        cursor.execute("SELECT COUNT(*) FROM audit_log WHERE stream <> 'access'")
        [[projected]] = cursor.fetchall()
    assert ends == dict.fromkeys(rolled.accepted, 1)
    assert left == [0, 0, 0, 0]
    assert projected <= events


def test_neither_met_what_it_could_not_read(rolled: Rolled) -> None:
    """No projection was held up, and no role ended by itself."""
    logs = {path.stem: path.read_text("utf-8") for path in (rolled.installation.data / "log").glob("*.log")}
    assert set(logs) == {*WRITERS, *READERS}
    for name, text in logs.items():
        assert "Traceback" not in text, name
        assert text.count('"role_started"') == text.count('"role_stopped"') == 2, name
    with databases.connected(rolled.url) as link, link.cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM checkpoints WHERE halted IS NOT NULL")
        assert cursor.fetchone() == (0,)


def test_the_release_before_is_another_tree(before: Release) -> None:
    """Its roles run from its own sources, not from ours."""
    where = before.python("import broker; print(broker.__file__)").strip()
    assert where.startswith(str(before.root))
    assert releases.OURS.root != before.root
