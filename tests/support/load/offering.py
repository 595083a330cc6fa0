"""An open-loop load generator: requests are due at fixed times, whatever became of those before.

Latency counts from when a request was due, so that a stall shows in every request that it held up
(coordinated omission: https://www.scylladb.com/2021/04/22/on-coordinated-omission/).
"""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from broker import clock
from support.system import System

# A gateway takes no more than 16 of one producer at once.
BATCHES_AT_ONCE = 12
MOMENTS = 60
"""So many points a graph has."""


@dataclass(slots=True)
class Request:
    """One request: seconds from when it was due to its answer; `status` 0 when there was none."""

    seconds: float
    status: int
    ids: list[str]
    due: float = 0.0
    """When it was due, in seconds since the first one was."""


@dataclass
class Offered:
    """What became of a load of `rate` messages a second for `seconds`."""

    rate: float
    seconds: float
    batch: int = 1
    requests: list[Request] = field(default_factory=list)
    elapsed: float = 0.0
    """From the first request to the last answer."""
    started: float = 0.0
    """When the first request was due, by the loop's clock."""
    since_ms: int = 0
    """The same by the wall clock: ids made of these messages are no older."""

    @property
    def messages(self) -> int:
        return len(self.requests) * self.batch

    @property
    def accepted(self) -> set[str]:
        """The ids of all messages answered with 202."""
        return {one for request in self.requests for one in request.ids}

    @property
    def success_rate(self) -> float:
        return len(self.accepted) / self.messages

    @property
    def average(self) -> float:
        return sum(request.seconds for request in self.requests) / len(self.requests)

    def quantile(self, share: float) -> float:
        """The nearest-rank quantile, in seconds."""
        return quantile([request.seconds for request in self.requests], share)

    def figures(self) -> dict[str, object]:
        """For the report; milliseconds."""
        return {
            "rate": self.rate,
            "seconds": self.seconds,
            "messages": self.messages,
            "accepted": len(self.accepted),
            "success_rate": self.success_rate,
            "elapsed_s": round(self.elapsed, 1),
            "per_second": round(len(self.accepted) / self.elapsed, 1),
            **latencies([request.seconds for request in self.requests]),
            "statuses": {
                str(status): sum(one.status == status for one in self.requests)
                for status in sorted({one.status for one in self.requests})
            },
            "responses": self.over_time(),
        }

    def over_time(self) -> list[dict[str, float]]:
        """At most MOMENTS times of equal length, by when requests were due: what was taken of them, and how quickly."""
        length = max(1.0, self.seconds / MOMENTS)
        within: dict[int, list[Request]] = {}
        for request in self.requests:
            within.setdefault(int(request.due / length), []).append(request)
        return [
            {
                "t": round(number * length, 1),
                "per_second": round(sum(len(one.ids) for one in requests) / self._long(number, length), 1),
                "p95_ms": round(quantile([one.seconds for one in requests], 0.95) * 1000, 1),
            }
            for number, requests in sorted(within.items())
        ]

    def _long(self, number: int, length: float) -> float:
        """The last of the times may be cut short."""
        return min(length, self.messages / self.rate - number * length)


def quantile(seconds: Sequence[float], share: float) -> float:
    """The nearest-rank quantile, in seconds."""
    ordered = sorted(seconds)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def latencies(seconds: Sequence[float]) -> dict[str, float]:
    """What the report shows of these times; milliseconds."""
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {
        "average_ms": round(sum(seconds) / len(seconds) * 1000, 1),
        **{f"{name}_ms": round(quantile(seconds, share) * 1000, 1) for name, share in shares.items()},
    }


async def offer(
    system: System,
    rate: float,
    seconds: float,
    *,
    batch: int = 1,
    connections: int = 32,
    in_turn: bool = False,
    told: Callable[[int, int], None] | None = None,
) -> Offered:
    """Submit `rate` messages a second for `seconds`, `batch` in a request; `told` how far it is.

    At most `connections` requests are under way at once, for batches fewer than a gateway takes of one producer;
    a request that waits for one is late all the same. `in_turn` uses every connection as much as the others.
    """
    offered = Offered(rate, seconds, batch)
    total = round(rate * seconds / batch)
    connections = min(connections, BATCHES_AT_ONCE) if batch > 1 else connections
    run = secrets.token_hex(4)
    loop = asyncio.get_running_loop()
    lines = await _lines(system, min(connections, total), in_turn=in_turn)
    started = offered.started = loop.time()
    offered.since_ms = clock.now_ms()
    tasks = []
    for number in range(total):
        due = started + number * batch / rate
        await asyncio.sleep(max(0.0, due - loop.time()))
        bodies = [_message(f"{run} {number}.{index}") for index in range(batch)]
        tasks.append(asyncio.create_task(_request(lines, bodies, due, offered)))
        if told is not None:
            told(number + 1, total)
    await asyncio.gather(*tasks)
    offered.elapsed = loop.time() - started
    while not lines.empty():
        lines.get_nowait().close()
    return offered


class Line:
    """One kept connection to the gateway; opened anew when it broke. By hand: httpx would be most of the load."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self._port, self._context = port, context
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is not None and self._streams[0].at_eof():
            # The server ends what was idle for long.
            self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection(
                "127.0.0.1", self._port, ssl=self._context, server_hostname="localhost"
            )
        return self._streams

    async def post(self, path: str, body: object) -> tuple[int, bytes]:
        """The status and the body of the answer. Raises OSError and EOFError."""
        try:
            reader, writer = await self.open()
            content = json.dumps(body).encode()
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(answer.split(b"content-length:")[1].split(b"\r\n")[0])
            return int(answer[9:12]), await reader.readexactly(length)
        except (OSError, EOFError):
            self.close()
            raise

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _lines(system: System, count: int, *, in_turn: bool) -> asyncio.Queue[Line]:
    context = system.context("clients/demo/client")
    # The one used last first, so that few stay idle for long.
    lines: asyncio.Queue[Line] = asyncio.Queue() if in_turn else asyncio.LifoQueue()
    for _ in range(count):
        line = Line(int(system.overrides["gateway_port"]), context)
        await line.open()
        lines.put_nowait(line)
    return lines


def _message(text: str) -> dict[str, str]:
    return {"sender_number": "+4915200000000", "message_body": f"load {text}"}


async def _request(
    lines: asyncio.Queue[Line], messages: list[dict[str, str]], due: float, offered: Offered
) -> None:
    line = await lines.get()
    status, ids = 0, []
    try:
        if len(messages) == 1:
            status, content = await line.post("/api/v1/messages", messages[0])
            ids = [json.loads(content)["message_id"]] if status == 202 else []
        else:
            status, content = await line.post("/api/v1/messages/batch", {"messages": messages})
            results = json.loads(content).get("results", [])
            ids = [one["message_id"] for one in results if "error" not in one]
    except (OSError, EOFError, IndexError, ValueError):
        # No answer, or none that could be read: a failure; whether the message was taken is unknown.
        status = 0
    finally:
        lines.put_nowait(line)
    took = asyncio.get_running_loop().time() - due
    offered.requests.append(Request(took, status, ids, due - offered.started))
