"""One HTTP POST, bounded in time and in what is read; no redirects, cookies, or environment proxies."""

from __future__ import annotations

import asyncio

import httpcore
import msgspec

from broker.errors import BrokerError

FAILURES = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError, BrokerError)


class Reply(msgspec.Struct, frozen=True):
    """Header names in lower case; `body` holds at most what was allowed."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool
    """Whether the body ended within the bound."""


async def post(
    pool: httpcore.AsyncConnectionPool,
    url: str,
    headers: dict[str, str],
    body: bytes,
    *,
    timeout: float,
    most: int,
) -> Reply:
    """POST and read at most `most` bytes. Raises TimeoutError after `timeout` seconds, and FAILURES."""
    sent = [(name.encode(), value.encode()) for name, value in headers.items()]
    sent.append((b"content-length", str(len(body)).encode()))
    async with asyncio.timeout(timeout), pool.stream("POST", url, headers=sent, content=body) as response:
        chunks: list[bytes] = []
        size = 0
        async for chunk in response.aiter_stream():
            chunks.append(chunk[: most - size])
            size += len(chunk)
            if size > most:
                break
        answered = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers
        }
        return Reply(response.status, answered, b"".join(chunks), size <= most)


def reason(error: BaseException) -> str:
    """A failure in few words, without the address."""
    if isinstance(error, BrokerError):
        return str(error)
    return f"{type(error).__name__}: {error}"[:200] if str(error) else type(error).__name__
