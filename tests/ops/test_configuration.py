"""Settings that are changed: ports, variables, the database. The new ones hold, the old ones are not used any more."""

from __future__ import annotations

import asyncio
import getpass
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pymysql
import pytest

from broker import client as clients
from broker import preparation, tracing
from broker.client import Message
from broker.domain import ids
from broker.embedded.mariadb import MariaDB
from broker.embedded.valkey import Valkey, free_port
from broker.events import codec, connection, types
from broker.events.keys import LogKeys
from broker.events.positions import at
from broker.projections import schema
from broker.settings import Settings, load
from broker.web import tls
from support import databases
from support.collector import Collector, collecting, plain
from support.installation import PORTS
from support.releases import Mixed
from support.waiting import wait_until

NUMBER = "+4915200000000"
DATABASE, USER, PASSWORD = "short_messages", "moved", "p@ss/w:rd"
ROLES = ("gateway", "worker", "projector")


@dataclass
class Changed:
    """An installation that ran, was stopped, changed and started again."""

    installation: Mixed
    old_ports: dict[str, int]
    old_url: str
    new_url: str
    before: str
    """A message that was delivered before the change."""
    after: str
    """One that its recipient does not take, sent after it."""

    @property
    def settings(self) -> Settings:
        """As every command and role finds them."""
        return load(environ=self.installation.environ)


async def deliver(installation: Mixed, status: str) -> str:
    """Send a message and wait until its producer is told this status; its id."""
    url = f"https://localhost:{installation.ports['gateway_port']}"
    async with clients.connect(url, installation.certs, "demo") as producer:
        accepted = await producer.submit(Message(NUMBER, "hello"))

        async def ended() -> bool:
            return (await producer.status(accepted.message_id))["status"] == status

        await wait_until(ended, within=120, what=status)
    return accepted.message_id


async def prepare(settings: Settings) -> None:
    """As `broker prepare`."""
    schema.migrate(str(settings.mysql_url))
    await preparation.prepare(settings)


def listening(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def listened(pid: int) -> set[int]:
    """The ports on which a process takes connections."""
    found = psutil.Process(pid).net_connections("tcp")
    return {one.laddr.port for one in found if one.status == psutil.CONN_LISTEN}


async def up(installation: Mixed, *roles: str) -> None:
    for role in roles:
        installation.start(role)
    ports = [installation.ports[name] for name in PORTS if name.partition("_")[0] in roles]
    await wait_until(lambda: all(map(listening, ports)), within=120, what="every role listens")


def as_root(server: MariaDB, *statements: str) -> None:
    """As the user that made the server's data directory may over its socket."""
    with (
        pymysql.connect(user=getpass.getuser(), unix_socket=str(server.socket), autocommit=True) as link,
        link.cursor() as cursor,
    ):
        for statement in statements:
            cursor.execute(statement)


def move_database(server: MariaDB, installation: Mixed) -> str:
    """Another database with another user, empty; the old one is gone. Its address."""
    old = installation.environ["BROKER_MYSQL_URL"]
    databases.drop(old)
    account = f"'{USER}'@'localhost'"
    as_root(
        server,
        f"CREATE DATABASE {DATABASE} CHARACTER SET utf8mb4",
        f"CREATE USER {account} IDENTIFIED BY '{PASSWORD}'",
        f"GRANT ALL PRIVILEGES ON {DATABASE}.* TO {account}",
    )
    return f"mysql://{USER}:p%40ss%2Fw%3Ard@localhost/{DATABASE}?unix_socket={server.socket}"


async def change(installation: Mixed, server: MariaDB, directory: Path, collector: Collector) -> Changed:
    """Run with the old settings, stop, change, start with the new ones."""
    installation.environ["BROKER_DEFAULT_CHANNEL"] = "simulated"
    await prepare(load(environ=installation.environ))
    (installation.data / "log").mkdir()
    await up(installation, *ROLES)
    before = await deliver(installation, "delivered")
    installation.stop_all()
    old_ports, old_url = dict(installation.ports), installation.environ["BROKER_MYSQL_URL"]
    new_url = move_database(server, installation)
    installation.ports = {name: free_port() for name in PORTS}
    file = directory / "other.toml"
    # The file's ports are the old ones: the environment outranks it.
    file.write_text(
        f"metrics_public = true\nretry_interval = 9999\n[gateway]\nport = {old_ports['gateway_port']}\n"
    )
    installation.environ |= {f"BROKER_{name.upper()}": str(port) for name, port in installation.ports.items()}
    installation.environ |= {
        "BROKER_CONFIG": str(file),
        "BROKER_MYSQL_URL": new_url,
        "BROKER_MAX_ATTEMPTS": "2",
        "BROKER_RETRY_INTERVAL": "0.2",
        "BROKER_OTLP_URL": collector.url,
    }
    changed = Changed(installation, old_ports, old_url, new_url, before, "")
    await prepare(changed.settings)
    async with preparation.opened(changed.settings) as tools:
        await tools.clients.change_route("demo", "simulated", target="failures=99", actor="system")
    await up(installation, *ROLES, "server", "portal")
    changed.after = await deliver(installation, "failed")
    return changed


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """Where traces go from the change on."""
    with collecting() as made:
        yield made


@pytest.fixture(scope="module")
def changed(
    valkey: Valkey, mariadb: MariaDB, collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Changed]:
    directory = tmp_path_factory.mktemp("changed")
    url = databases.create(mariadb)
    made = Mixed(directory / "data", redis_url=valkey.url, mysql_url=url, log_name="t-changed")
    try:
        yield asyncio.run(change(made, mariadb, directory, collector))
    finally:
        made.close()
        as_root(mariadb, f"DROP DATABASE IF EXISTS {DATABASE}", f"DROP USER IF EXISTS '{USER}'@'localhost'")


async def history(changed: Changed, message: str) -> list[types.Event]:
    """Every event of a message as the log has them, oldest first."""
    subject = ids.parse(message)
    stream = LogKeys("t-changed", 4).partitions[ids.partition(subject)]
    redis = connection.connect(changed.settings.redis_url or "")
    entries = await redis.xrange(stream.events)
    await redis.aclose()
    found = [codec.recorded(codec.stored(at(stream.stream, entry), fields)) for entry, fields in entries]
    return [one.event for one in found if one.subject == subject]


def caller(changed: Changed, certificate: str, port: str) -> httpx.Client:
    """Against one of the surfaces, with a certificate."""
    made = changed.installation
    files = [made.certs / f"{certificate}.{end}" for end in ("crt", "key")]
    context = tls.client_context(made.certs / "ca.crt", *files)
    return httpx.Client(base_url=f"https://localhost:{made.ports[port]}", verify=context, timeout=60)


def get(changed: Changed, port: str, path: str, scheme: str = "https") -> httpx.Response:
    made = changed.installation
    context = tls.client_context(made.certs / "ca.crt")
    return httpx.get(f"{scheme}://localhost:{made.ports[port]}{path}", verify=context, timeout=30)


@pytest.mark.case("REG-PORTS")
async def test_every_role_is_at_its_new_port_and_at_no_old_one(changed: Changed) -> None:
    """All five, with every check of `smoke` well; where they were before none of them listens."""
    made = changed.installation
    assert not set(changed.old_ports.values()) & set(made.ports.values())
    # Anybody else's process may have been given an old port meanwhile.
    heard = {role: listened(process.pid) for role, process in made.running.items()}
    assert heard == {name.partition("_")[0]: {port} for name, port in made.ports.items()}
    await wait_until(changed.installation.well, within=120, what="smoke finds nothing")
    assert get(changed, "portal_port", "/health", "http").status_code == 200


@pytest.mark.case("REG-ENVIRONMENT")
async def test_variables_that_were_changed_hold(changed: Changed) -> None:
    """Two attempts instead of five, and sooner than the file's interval, which the environment outranks."""
    events = await history(changed, changed.after)
    assert [type(one) for one in events] == [
        types.MessageSubmitted,
        types.DeliveryAttempted,
        types.RetryScheduled,
        types.DeliveryDue,
        types.DeliveryAttempted,
        types.Failed,
    ]
    assert [one.delay_ms for one in events if isinstance(one, types.RetryScheduled)] == [200]


@pytest.mark.case("REG-ENVIRONMENT")
def test_what_only_the_file_says_holds(changed: Changed) -> None:
    """Metrics are public now, on both surfaces that had asked for a certificate."""
    for port in ("gateway_port", "server_port"):
        assert get(changed, port, "/metrics").status_code == 200


@pytest.mark.case("REG-DATABASE")
async def test_another_database_has_the_whole_history(changed: Changed) -> None:
    """Other name, other user, other password, empty at first: also what was sent before is in its tables."""

    def rows() -> dict[str, Any]:
        with databases.connected(changed.new_url) as link, link.cursor() as cursor:
            cursor.execute("SELECT message_id, status, attempt_count FROM messages")
            return {one: (status, attempts) for one, status, attempts in cursor.fetchall()}

    expected = {changed.before: ("delivered", 1), changed.after: ("failed", 2)}
    await wait_until(
        lambda: expected.items() <= rows().items(), within=120, what="both messages are in the new tables"
    )
    with pytest.raises(pymysql.err.OperationalError, match="Unknown database"):
        databases.connected(changed.old_url)


def test_no_secret_of_the_new_settings_is_shown(changed: Changed) -> None:
    """The password is in no log, and `config` hides it."""
    said = changed.installation.broker("config", "--json").stdout
    logs = "".join(path.read_text("utf-8") for path in (changed.installation.data / "log").glob("*.log"))
    assert f"mysql://{USER}:***@" in said
    assert len(logs.splitlines()) > 10
    for text in (said, logs):
        assert PASSWORD not in text
        assert "p%40ss" not in text


@pytest.mark.case("REG-ENVIRONMENT", "REG-PORTS", "REG-DATABASE")
def test_settings_that_are_wrong_stop_the_start_with_their_names(changed: Changed) -> None:
    """A misspelt name, a value that is none, a port that is taken, another number of partitions: each is said."""
    made = changed.installation
    taken = made.ports["server_port"]
    cases = [
        ({"BROKER_GATEWAY_PROT": "1"}, 2, "Did you mean gateway_port"),
        ({"BROKER_GATEWAY_PORT": "eighty"}, 2, "it takes a TCP port"),
        ({"BROKER_MYSQL_URL": "mysql://nowhere"}, 2, "mysql://user:password@host:port/database"),
        ({"BROKER_PARTITIONS": "9"}, 2, "was created with 4"),
        ({"BROKER_GATEWAY_PORT": str(taken)}, 1, f"127.0.0.1:{taken}: Address already in use"),
    ]
    logs = [made.data / f"wrong-{number}.log" for number in range(len(cases))]
    started = [
        made.forker().start("gateway", environ=made.surroundings(**changes), log=log)
        for (changes, _, _), log in zip(cases, logs, strict=True)
    ]
    for process, log, (_, code, says) in zip(started, logs, cases, strict=True):
        assert process.wait(120) == code
        said = log.read_text("utf-8")
        assert says in said
        assert "Traceback" not in said


@pytest.mark.case("REG-ENVIRONMENT", "REG-PORTS", "REG-DATABASE")
async def test_the_change_lost_and_doubled_nothing(changed: Changed) -> None:
    """What was sent before and after it ended once."""
    ends = []
    for message in (changed.before, changed.after):
        events = await history(changed, message)
        ends.append([type(one) for one in events if isinstance(one, types.Delivered | types.Failed)])
    assert ends == [[types.Delivered], [types.Failed]]


async def traced(collector: Collector, message: bytes, names: set[str]) -> dict[str, dict[str, Any]]:
    """A message's spans, once all of these have arrived; there are no others."""
    await wait_until(lambda: names <= set(collector.of(message)), within=120, what=f"{names} have arrived")
    found = collector.of(message)
    assert set(found) == names
    return found


PROJECTED = {"project MessageSubmitted", "project Failed"}


async def test_a_message_is_one_trace_through_all_processes(changed: Changed, collector: Collector) -> None:
    """Gateway, worker and projector send their steps of it, each below the one that led to it."""
    message = ids.parse(changed.after)
    spans = await traced(collector, message, {"submit", "append", "deliver", *PROJECTED})

    def all_of_it() -> list[dict[str, Any]]:
        return [one for one in collector.spans if one["traceId"] == message.hex()]

    # The second attempt's may come later than the projector's.
    await wait_until(lambda: len(all_of_it()) == 6, within=120, what="both attempts have arrived")
    every = all_of_it()
    attempts = {plain(one["attributes"])["broker.attempt"]: one for one in every if one["name"] == "deliver"}
    assert sorted(attempts) == ["1", "2"]
    submit, last = spans["submit"], attempts["2"]
    assert "parentSpanId" not in submit
    for child in (spans["append"], *attempts.values(), spans["project MessageSubmitted"]):
        assert child["parentSpanId"] == submit["spanId"]
    assert spans["project Failed"]["parentSpanId"] == last["spanId"]
    assert [one["service"] for one in (submit, spans["append"], last, spans["project Failed"])] == [
        "broker-gateway", "broker-gateway", "broker-worker", "broker-projector",
    ]  # fmt: skip
    outcomes = [plain(one["attributes"])["broker.outcome"] for one in attempts.values()]
    assert sorted(outcomes) == ["failed", "retry"]
    assert submit["spanId"] == tracing.span_id(message, tracing.SUBMIT)
    assert len({one["spanId"] for one in every}) == 6


async def test_batches_and_registrations_are_traced_too(changed: Changed, collector: Collector) -> None:
    """Each message of a batch, linked to the span that the producer names; and what the server registers."""
    named = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    given = {"sender_number": NUMBER, "message_body": "traced"}
    with caller(changed, "clients/demo/client", "gateway_port") as gateway:
        answer = gateway.post("/api/v1/messages/batch", json={"messages": [given, given]}, headers=named)
        twice = [gateway.post("/api/v1/messages", json=given, headers={"idempotency-key": "k"}) for _ in "ab"]
    with caller(changed, "services/gateway", "server_port") as server:
        registered = server.post("/internal/messages/register", json={"client_id": "demo", **given})
    for one in answer.json()["results"]:
        spans = await traced(
            collector, ids.parse(one["message_id"]), {"submit", "append", "deliver", *PROJECTED}
        )
        assert spans["submit"]["links"][0]["spanId"] == "b7ad6b7169203331"
    again = ids.parse(twice[1].json()["message_id"])
    names = {"submit", "append", "deliver", *PROJECTED, "submit again"}
    spans = await traced(collector, again, names)
    assert spans["submit again"]["parentSpanId"] == spans["submit"]["spanId"]
    message = ids.parse(registered.json()["message_id"])
    spans = await traced(collector, message, {"register", "append", "deliver", *PROJECTED})
    assert spans["register"]["service"] == "broker-server"
    assert spans["append"]["parentSpanId"] == spans["register"]["spanId"]


def test_traces_hold_no_plain_text(changed: Changed, collector: Collector) -> None:
    """Neither bodies nor numbers leave with them."""
    assert len(collector.bodies) > 1
    for body in collector.bodies:
        assert NUMBER.encode() not in body
        assert b"hello" not in body
        assert b"traced" not in body
