"""The whole system as its users run it: `up` in a directory of its own, on free ports."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pymysql

from broker.embedded.mariadb import MariaDB
from broker.embedded.urls import resolve
from broker.events import connection, log_identity
from broker.events.keys import LogKeys
from broker.projections import address
from broker.settings import Settings, load
from support import commands, furnishing
from support.waiting import wait_until

PORTS = ("gateway_port", "server_port", "worker_metrics_port", "projector_metrics_port", "portal_port")


class System:
    """What `up` runs, seen from outside: processes, APIs, tables, streams, files."""

    def __init__(self, data: Path, **settings: Any) -> None:
        self.data = data
        self.certs = data / "certs"
        # A busy machine holds a process up for longer than proofs are good for by default.
        self.overrides = dict.fromkeys(PORTS, 0) | {"trust_max_age": 4.0} | settings

    # -- Running it ---------------------------------------------------------------------------------------

    @property
    def environ(self) -> dict[str, str]:
        own = {f"BROKER_{name.upper()}": str(value) for name, value in self.overrides.items()}
        return {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")} | own

    def run(self, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """A `broker` command against this system."""
        return commands.run(*args, "--data", str(self.data), env=self.environ, **options)

    def furnish(self) -> None:
        """Spare MariaDB its first start."""
        self.data.mkdir(mode=0o700, exist_ok=True)
        furnishing.furnish(MariaDB(self.data / "mariadb"))

    def up(self, *args: str) -> None:
        done = self.run("up", "--detach", *args)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.logs()}"
        # The ports that were free at the first start stay this system's for the next.
        self.overrides |= {name: int(self.ports()[name]) for name in PORTS}

    def down(self) -> None:
        self.run("down")

    def status(self) -> dict[str, Any]:
        return json.loads(self.run("status", "--json").stdout)

    def members(self) -> dict[str, dict[str, Any]]:
        return {
            one["name"]: one for one in json.loads((self.data / "run" / "state.json").read_bytes())["members"]
        }

    def ports(self) -> dict[str, int]:
        members = self.members()

        def port(name: str) -> int:
            found = next(one for key, one in members.items() if key == name or key.startswith(f"{name}-"))
            return int(httpx.URL(found["url"]).port or 443)

        roles = ("gateway", "server", "worker", "projector", "portal")
        return dict(zip(PORTS, (port(role) for role in roles), strict=True))

    def kill(self, name: str) -> int:
        """SIGKILL a process by the name that `status` shows; its pid."""
        pid = self.members()[name]["pid"]
        os.kill(pid, signal.SIGKILL)
        return pid

    async def back(self, name: str, pid: int) -> None:
        """Wait until another process has taken the place of `pid` and is healthy."""
        await wait_until(
            lambda: (m := self.members()[name])["pid"] not in (None, pid) and m["health"] == "ok",
            within=90,
            what=f"{name} back",
        )

    async def healthy(self) -> None:
        await wait_until(lambda: self.status()["healthy"], within=90, what="healthy")

    async def quiet(self) -> None:
        """Wait until no message is open: those of other tests may still be on their way, or wait for a retry."""
        redis, partitions = self.redis(), self.keys().partitions

        async def none() -> bool:
            return not any([await redis.hlen(each.open) for each in partitions])

        await wait_until(none, within=60, what="no open message")
        await redis.aclose()

    def logs(self) -> str:
        return "\n".join(path.read_text("utf-8", "replace")[-3000:] for path in self.data.glob("log/*.log"))

    # -- Using it -----------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        return resolve(load(environ={}, data_dir=self.data, certs_dir=self.certs, **self.overrides))

    def client(
        self,
        certificate: str | None = "clients/demo/client",
        port: str = "gateway_port",
        connections: int = 100,
    ) -> httpx.AsyncClient:
        """An HTTPS client with a certificate of `certs`, against the gateway or another port."""
        return httpx.AsyncClient(
            base_url=f"https://localhost:{self.overrides[port]}",
            verify=self.context(certificate),
            timeout=30,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    def context(self, certificate: str | None) -> ssl.SSLContext:
        """Trusts this system's CA and presents this certificate."""
        context = ssl.create_default_context(cafile=str(self.certs / "ca.crt"))
        if certificate:
            context.load_cert_chain(self.certs / f"{certificate}.crt", self.certs / f"{certificate}.key")
        return context

    async def send(self, count: int) -> None:
        """So many messages of the demo client, at once; the gateway takes all of them."""
        async with self.client() as client:
            sent = [
                client.post(
                    "/api/v1/messages", json={"sender_number": "+4915200000000", "message_body": f"no {n}"}
                )
                for n in range(count)
            ]
            assert {answer.status_code for answer in await asyncio.gather(*sent)} == {202}

    def delivered(self) -> int:
        """Messages that the tables show as delivered."""
        return self.query("SELECT COUNT(*) AS n FROM messages WHERE status='delivered'")[0]["n"]

    def mysql(self) -> pymysql.Connection:
        where = address.parse(self.settings.mysql_url)
        return pymysql.connect(
            **where.options(),
            database=where.database,
            autocommit=True,
            cursorclass=pymysql.cursors.DictCursor,
        )

    def query(self, sql: str, *args: Any) -> list[dict[str, Any]]:
        with self.mysql() as link, link.cursor() as cursor:
            cursor.execute(sql, args)
            return list(cursor.fetchall())

    def redis(self) -> connection.Redis:
        return connection.connect(self.settings.redis_url)

    def keys(self) -> LogKeys:
        identity = log_identity.read_file(self.settings)
        return LogKeys(self.settings.log_name, identity.partitions)


@contextmanager
def running(data: Path, *args: str, bare: bool = False, **settings: Any) -> Iterator[System]:
    """`up`, and down again whatever happens; `bare` leaves everything to it."""
    system = System(data, **settings)
    try:
        if not bare and "mysql_url" not in settings:
            system.furnish()
        system.up(*args)
        yield system
    finally:
        system.down()
        for process in psutil.process_iter(["cmdline"]):
            if str(data) in " ".join(process.info["cmdline"] or []):
                process.kill()


async def eventually(condition: Any, within: float = 60.0, what: str = "") -> Any:
    """`wait_until`, with blocking conditions run off the loop."""

    async def check() -> Any:
        return await asyncio.to_thread(condition)

    return await wait_until(check, within=within, what=what)
