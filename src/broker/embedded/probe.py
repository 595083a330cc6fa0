"""Ask a process how it is: its health page, and the lag in its metrics."""

from __future__ import annotations

import asyncio
import re
import ssl
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

LAG = re.compile(rb"^broker_\w*lag_(events|seconds)(?:\{[^}]*\})? ([0-9.eE+-]+)\s*$", re.MULTILINE)


class Target(NamedTuple):
    """Where a role answers. `ca` is given for https; `metrics` when lag can be read there."""

    host: str
    port: int
    path: str
    ca: Path | None = None
    metrics: str | None = None

    @property
    def url(self) -> str:
        """For people: the origin without the path."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.ca else ''}://{host}:{self.port}"


class Health(NamedTuple):
    """`detail` says for people what is not well; lag is the largest over projections and partitions."""

    ok: bool
    detail: str = ""
    lag_events: float | None = None
    lag_seconds: float | None = None


def reachable(host: str) -> str:
    """The address at which a server that listens on `host` is reached from this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)


async def health(target: Target, timeout: float = 3.0) -> Health:
    """Never raises: no answer within `timeout` seconds is an answer, too."""
    try:
        async with asyncio.timeout(timeout):
            status, body = await get(target, target.path)
            lag = await _lag(target)
    except TimeoutError:
        return Health(ok=False, detail="no answer")
    except ssl.SSLError as error:
        return Health(ok=False, detail=f"TLS: {error.reason or error}")
    except (OSError, ValueError, EOFError) as error:
        return Health(ok=False, detail=_reason(error))
    return Health(status == 200, _degraded(body) if status == 200 else _failing(status, body), *lag)


async def get(target: Target, path: str) -> tuple[int, bytes]:
    """The status and body of a GET. Raises OSError (ssl.SSLError among them) or ValueError."""
    context = None
    if target.ca is not None:
        context = ssl.create_default_context(cafile=str(target.ca))
        # Our own CA vouches for the process; the name it was reached by may be any of this machine's.
        context.check_hostname = False
        # Where the portal's certificate is another authority's, itself is what is trusted.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        # And that need not be as strict as Python is from 3.13 on.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    reader, writer = await asyncio.open_connection(target.host, target.port, ssl=context)
    try:
        # HTTP/1.0: the answer ends with the connection and is never chunked.
        writer.write(f"GET {path} HTTP/1.0\r\nHost: {target.host}\r\nAccept: */*\r\n\r\n".encode("ascii"))
        answer = await reader.read(-1)
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/"):
        raise ValueError("not an HTTP answer")
    return int(words[1]), body


async def _lag(target: Target) -> tuple[float | None, float | None]:
    if target.metrics is None:
        return None, None
    status, body = await get(target, target.metrics)
    if status != 200:
        return None, None
    found: dict[bytes, float] = {}
    for unit, value in LAG.findall(body):
        found[unit] = max(found.get(unit, 0.0), float(value))
    return found.get(b"events"), found.get(b"seconds")


def _degraded(body: bytes) -> str:
    """What is not well in a process that serves all the same."""
    try:
        degraded = msgspec.json.decode(body).get("status") == "degraded"
    except (msgspec.DecodeError, AttributeError):
        return ""
    return _failing(200, body) if degraded else ""


def _failing(status: int, body: bytes) -> str:
    """The checks that are not ok, from `{"checks": {name: "ok" | {"status": "ok", …}}}`."""
    try:
        checks = msgspec.json.decode(body).get("checks", {})
    except (msgspec.DecodeError, AttributeError):
        checks = {}
    bad = [f"{name}: {_word(value)}" for name, value in checks.items() if _state(value) not in ("ok", "true")]
    return ", ".join(bad) or f"HTTP {status}"


def _state(value: Any) -> str:
    return str(value.get("status", "")) if isinstance(value, dict) else str(value).lower()


def _word(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("detail") or value.get("message") or value.get("status") or value)
    return str(value)


def _reason(error: BaseException) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "not listening"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
