"""Load over keep-alive mTLS connections, written for speed: one process, no HTTP library.

python bench/loadgen.py --port 8001 --ca certs/ca.crt --cert certs/clients/demo/client.crt
    --key certs/clients/demo/client.key [--connections 128] [--seconds 5] [--batch 500]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import sys
import time
from pathlib import Path

import psutil

PATH = "/api/v1/messages"


class Connection(asyncio.Protocol):
    """One request after the other until `deadline`; the next goes out as soon as the answer is in."""

    def __init__(self, request: bytes, run: Run) -> None:
        self.request = request
        self.run = run
        self.buffer = b""
        self.sent = 0.0
        self.missing = 0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    def start(self) -> None:
        self.sent = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if self.missing:
            self.missing -= len(data)
            if self.missing <= 0:
                self.answered()
            return
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.buffer[:end].lower()
        at = head.index(b"content-length:") + 15
        line_end = head.find(b"\r\n", at)
        length = int(head[at : line_end if line_end > 0 else end])
        self.run.statuses[head[9:12]] = self.run.statuses.get(head[9:12], 0) + 1
        self.missing = end + 4 + length - len(self.buffer)
        self.buffer = b""
        if self.missing <= 0:
            self.answered()

    def answered(self) -> None:
        self.missing = 0
        now = time.perf_counter()
        self.run.latencies.append(now - self.sent)
        if now < self.run.deadline:
            self.sent = now
            self.transport.write(self.request)
        else:
            self.done.set_result(None)
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server closed the connection"))


class Run:
    """What one run saw."""

    def __init__(self) -> None:
        self.deadline = 0.0
        self.latencies: list[float] = []
        self.statuses: dict[bytes, int] = {}


def message(number: int) -> dict[str, object]:
    text = f"Your parcel {number:06d} arrives today between 14:00 and 16:00. Reply STOP to unsubscribe."
    return {"sender_number": f"+49152{number % 10_000_000:08d}", "message_body": text}


def request(batch: int) -> bytes:
    """A whole request; `batch` 0 for a single message."""
    body: object = {"messages": [message(n) for n in range(batch)]} if batch else message(1)
    content = json.dumps(body).encode()
    head = (
        f"POST {PATH}{'/batch' if batch else ''} HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def load(
    port: int, context: ssl.SSLContext, connections: int, seconds: float, *, batch: int, pid: int | None
) -> dict:
    """Drive the load; rates per second, latencies in milliseconds.

    The server's CPU time, where `pid` names it, leaves out the handshakes and does not depend on other load.
    """
    loop = asyncio.get_running_loop()
    run, content = Run(), request(batch)
    opened = []
    for _ in range(connections):
        _, protocol = await loop.create_connection(
            lambda: Connection(content, run), "127.0.0.1", port, ssl=context, server_hostname="localhost"
        )
        opened.append(protocol)
    server = psutil.Process(pid) if pid else None
    used = _cpu(server)
    began, cpu = time.perf_counter(), time.process_time()
    run.deadline = began + seconds
    for protocol in opened:
        protocol.start()
    await asyncio.gather(*(protocol.done for protocol in opened))
    took = time.perf_counter() - began
    ordered = sorted(run.latencies)

    def percentile(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000, 2)

    return {
        "requests": len(ordered),
        "seconds": round(took, 3),
        "requests_per_second": round(len(ordered) / took, 1),
        "messages_per_second": round(len(ordered) * max(1, batch) / took, 1),
        "statuses": {status.decode(): count for status, count in run.statuses.items()},
        "p50_ms": percentile(0.5),
        "p95_ms": percentile(0.95),
        "p99_ms": percentile(0.99),
        "loadgen_cpu": round((time.process_time() - cpu) / took, 2),
        "server_cpu_us_per_message": round((_cpu(server) - used) / len(ordered) / max(1, batch) * 1e6, 1),
    }


def _cpu(process: psutil.Process | None) -> float:
    if process is None:
        return 0.0
    times = process.cpu_times()
    return times.user + times.system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--ca", type=Path, default=Path("certs/ca.crt"))
    parser.add_argument("--cert", type=Path, default=Path("certs/clients/demo/client.crt"))
    parser.add_argument("--key", type=Path, default=Path("certs/clients/demo/client.key"))
    parser.add_argument("--connections", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--batch", type=int, default=0, help="messages a request; 0 for single messages")
    parser.add_argument("--pid", type=int, help="the server's process, to measure its CPU time")
    args = parser.parse_args()
    context = ssl.create_default_context(cafile=args.ca)
    context.load_cert_chain(args.cert, args.key)
    try:
        from uvloop import run
    except ImportError:
        from asyncio import run
    found = run(load(args.port, context, args.connections, args.seconds, batch=args.batch, pid=args.pid))
    json.dump(found, sys.stdout)
    print()


if __name__ == "__main__":
    main()
