"""Everything at once, through `up`: mTLS → log → delivered → in MySQL and audit_log, load generated too.

python bench/e2e.py [--messages 100000] [--batch 500] [--connections 64] [--rate 100 --rate-seconds 15]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import loadgen

PORTS = ("GATEWAY_PORT", "SERVER_PORT", "WORKER_METRICS_PORT", "PROJECTOR_METRICS_PORT")


# -- The load generator, a process of its own ------------------------------------------------------------


class Counted(loadgen.Connection):
    """Sends distinct requests until the run has no more of them."""

    def start(self) -> None:
        request = self.run.next_request()
        if request is None:
            if not self.done.done():
                self.done.set_result(None)
            self.transport.close()
            return
        self.sent = time.perf_counter()
        self.transport.write(request)

    def answered(self) -> None:
        self.missing = 0
        self.run.latencies.append(time.perf_counter() - self.sent)
        self.start()


class Budget(loadgen.Run):
    """So many messages, `batch` a request."""

    def __init__(self, messages: int, batch: int) -> None:
        super().__init__()
        self.left, self.batch, self.number = messages, batch, 0

    def next_request(self) -> bytes | None:
        size = min(self.left, self.batch or 1)
        if size == 0:
            return None
        self.left -= size
        first, self.number = self.number, self.number + size
        messages = [loadgen.message(first + n) for n in range(size)]
        return http(messages[0] if not self.batch else {"messages": messages}, batch=bool(self.batch))


def http(body: object, *, batch: bool) -> bytes:
    content = json.dumps(body).encode()
    return (
        f"POST {loadgen.PATH}{'/batch' if batch else ''} HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    ).encode() + content


async def send_all(args: argparse.Namespace, context) -> dict:
    """Closed loop: every connection sends its next request when it has its answer."""
    run, loop = Budget(args.messages, args.batch), asyncio.get_running_loop()
    opened = [
        (await loop.create_connection(lambda: Counted(b"", run), "127.0.0.1", args.port, ssl=context,
                                      server_hostname="localhost"))[1]
        for _ in range(args.connections)
    ]  # fmt: skip
    began = time.time()
    for protocol in opened:
        protocol.start()
    await asyncio.gather(*(protocol.done for protocol in opened))
    return {
        "began": began,
        "ended": time.time(),
        "statuses": {status.decode(): count for status, count in run.statuses.items()},
        "latencies": quantiles(run.latencies),
    }


async def send_at_rate(args: argparse.Namespace, context) -> dict:
    """Open loop: latency counts from when a request was due, so that stalls are not hidden."""
    due: dict[str, float] = {}

    async def one(pool: asyncio.Queue, at: float, number: int) -> None:
        reader, writer = await pool.get()
        writer.write(http(loadgen.message(number), batch=False))
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        pool.put_nowait((reader, writer))
        due[body["message_id"]] = at

    pool: asyncio.Queue = asyncio.Queue()
    for _ in range(16):
        pool.put_nowait(
            await asyncio.open_connection("127.0.0.1", args.port, ssl=context, server_hostname="localhost")
        )
    began, tasks = time.time(), []
    for number in range(int(args.rate * args.rate_seconds)):
        at = began + number / args.rate
        await asyncio.sleep(max(0.0, at - time.time()))
        tasks.append(asyncio.create_task(one(pool, at, number)))
    await asyncio.gather(*tasks)
    return {"due": due}


def quantiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        f"p{share * 100:g}_ms": round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000, 1)
        for share in (0.5, 0.95, 0.99)
    } | {"max_ms": round(ordered[-1] * 1000, 1)}


# -- The system and what is seen of it -------------------------------------------------------------------


class Watched:
    """A system of `up` in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        own = {f"BROKER_{name}": "0" for name in PORTS}
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith("BROKER_")} | own

    def broker(self, *args: str) -> str:
        command = [sys.executable, "-m", "broker", *args, "--data", str(self.directory)]
        done = subprocess.run(command, env=self.environ, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        return done.stdout

    def members(self) -> list[dict]:
        return json.loads((self.directory / "run" / "state.json").read_bytes())["members"]

    def port(self) -> int:
        return int(next(m["url"] for m in self.members() if m["role"] == "gateway").rsplit(":", 1)[1])

    def connect(self):
        import pymysql

        from broker.embedded import urls
        from broker.projections import address
        from broker.settings import load

        settings = load(environ={}, data_dir=self.directory)
        where = address.parse(urls.mariadb(settings).url)
        return pymysql.connect(**where.options(), database=where.database, autocommit=True)

    def memory(self) -> dict[str, int]:
        """Resident MiB by process."""
        import psutil

        return {
            m["name"]: psutil.Process(m["pid"]).memory_info().rss >> 20 for m in self.members() if m["pid"]
        }

    def cpu(self) -> dict[str, float]:
        import psutil

        return {m["name"]: sum(psutil.Process(m["pid"]).cpu_times()[:2]) for m in self.members() if m["pid"]}

    def sender(self, *args: str) -> subprocess.Popen:
        command = [
            sys.executable,
            __file__,
            "--send",
            "--port",
            str(self.port()),
            "--data",
            str(self.directory),
        ]
        # A file, not a pipe: what a sender says of thousands of messages does not fit into one.
        return subprocess.Popen([*command, *args], stdout=(self.directory / "sender.json").open("w"))

    def said(self, sender: subprocess.Popen) -> dict:
        """What the sender reported at its end."""
        if sender.wait():
            raise SystemExit("the load generator failed")
        return json.loads((self.directory / "sender.json").read_text())


def number(link, query: str) -> int:
    """What a query for one number answers."""
    with link.cursor() as cursor:
        cursor.execute(query)
        return int(cursor.fetchone()[0])


DELIVERED = "SELECT COALESCE(SUM(delivered),0) FROM statistics"


def until_all_seen(link, messages: int, before: int) -> float:
    """When MySQL and audit_log had all of it (seconds since the epoch); `before` were delivered earlier.

    The statistics, which commit together with both, say when to count: to count all the time would take a
    share of the very database that is measured.
    """
    while number(link, DELIVERED) < before + messages:
        time.sleep(0.05)
    while True:
        seen = time.time()
        if (
            number(link, "SELECT COUNT(*) FROM messages WHERE status='delivered'") >= messages
            and number(link, "SELECT COUNT(*) FROM audit_log WHERE type='Delivered'") >= messages
        ):
            return seen


def throughput(system: Watched, link, args: argparse.Namespace) -> dict:
    before, delivered = system.cpu(), number(link, DELIVERED)
    sender = system.sender(
        "--messages", str(args.messages), "--batch", str(args.batch), "--connections", str(args.connections)
    )
    seen = until_all_seen(link, args.messages, delivered)
    sent = system.said(sender)
    took = seen - sent["began"]
    return {
        "messages": args.messages,
        "batch": args.batch,
        "accepted_in_s": round(sent["ended"] - sent["began"], 2),
        "in_mysql_and_audit_log_in_s": round(took, 2),
        "messages_per_second": round(args.messages / took),
        "statuses": sent["statuses"],
        "request": sent["latencies"],
        "cpu_seconds": {name: round(now - before.get(name, 0), 1) for name, now in system.cpu().items()},
    }


def latency(system: Watched, link, args: argparse.Namespace) -> dict:
    sender = system.sender("--rate", str(args.rate), "--rate-seconds", str(args.rate_seconds))
    seen: dict[str, float] = {}
    started = time.time()
    with link.cursor() as cursor:
        while sender.poll() is None or len(seen) < args.rate * args.rate_seconds:
            cursor.execute(
                "SELECT message_id FROM messages WHERE status='delivered' AND queued_at > FROM_UNIXTIME(%s)",
                (max(started, time.time() - 5) - 1,),
            )
            now = time.time()
            for (message_id,) in cursor.fetchall():
                seen.setdefault(message_id, now)
            if now - started > args.rate_seconds + 60:
                raise SystemExit(f"only {len(seen)} messages became visible")
            time.sleep(0.005)
    due = system.said(sender)["due"]
    return {"rate": args.rate, "visible": quantiles([seen[one] - at for one, at in due.items()])}


def redis_bytes(system: Watched) -> int:
    import asyncio as aio

    from broker.embedded import urls
    from broker.events import connection
    from broker.settings import load

    async def used() -> int:
        client = connection.connect(urls.valkey(load(environ={}, data_dir=system.directory)).url)
        try:
            return int((await client.info("memory"))["used_memory"])
        finally:
            await client.aclose()

    return aio.run(used())


def measure(args: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        system = Watched(Path(name))
        system.broker("up", "--detach", "--gateways", str(args.gateways), "--workers", str(args.workers))
        try:
            link = system.connect()
            link.cursor().execute("SET time_zone='+00:00'")
            found: dict = {}
            if args.rate_seconds:
                found["latency"] = latency(system, link, args)
                link.cursor().execute("DELETE FROM messages")
                link.cursor().execute("DELETE FROM audit_log")
            if args.messages:
                before = redis_bytes(system)
                found["throughput"] = throughput(system, link, args)
                found["redis_bytes_per_message"] = round((redis_bytes(system) - before) / args.messages)
            found["memory_mib"] = system.memory()
            return found
        finally:
            system.broker("down")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=0, help="messages a request; 0 for single messages")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--gateways", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0)
    parser.add_argument("--rate-seconds", type=float, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--send", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.send:
        import ssl

        import uvloop

        certs = args.data / "certs"
        context = ssl.create_default_context(cafile=certs / "ca.crt")
        context.load_cert_chain(certs / "clients/demo/client.crt", certs / "clients/demo/client.key")
        print(json.dumps(uvloop.run((send_at_rate if args.rate else send_all)(args, context))))
        return
    found = measure(args)
    print(json.dumps(found, indent=None if args.json else 2))


if __name__ == "__main__":
    main()
