"""The server's own inbox: mTLS POSTs in batches to its internal API.

The server answers what it takes and the worker records it. Server and network are our own side, so that no
failure here counts as an attempt.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Sequence
from urllib.parse import urlsplit

import httpcore
import msgspec

from broker.domain import ids
from broker.domain.message import Accepted, Answer, OwnSideAway
from broker.services.delivery.channels import posting
from broker.services.delivery.channels.base import Channel, Delivery, Report

PATH = "/internal/messages/deliver"
MAX_BATCH = 200
IN_FLIGHT = 4
MAX_ANSWER = 1024 * 1024
# What the server says of a message that `open` knows otherwise.
_CONTRADICTED = frozenset({"not_found", "conflict"})


class _Claim(msgspec.Struct, frozen=True):
    entry: str
    count: int


class _Item(msgspec.Struct, frozen=True):
    message_id: str
    worker_id: str
    claim: _Claim
    cycle: int
    attempt: int


class _Result(msgspec.Struct, frozen=True):
    message_id: str
    status: str
    error: str | None = None


class _Results(msgspec.Struct, frozen=True):
    results: list[_Result]


class _Waiting(msgspec.Struct, frozen=True, eq=False):
    delivery: Delivery
    report: Report
    batch: _Open


class _Open(msgspec.Struct, eq=False):
    left: int
    done: asyncio.Future[None]

    def one_less(self) -> None:
        self.left -= 1
        if self.left == 0 and not self.done.done():
            self.done.set_result(None)


class Inbox(Channel):
    """What is in hand meanwhile goes out together, a few requests at a time on kept connections."""

    name = "inbox"

    def __init__(self, url: str, context: ssl.SSLContext, *, timeout: float = 10.0) -> None:
        self._url = url.rstrip("/") + PATH
        self._host = urlsplit(url).netloc
        self._timeout = timeout
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context, max_connections=IN_FLIGHT, keepalive_expiry=30.0
        )
        self._waiting: deque[_Waiting] = deque()
        self._senders: set[asyncio.Task[None]] = set()

    async def deliver(self, deliveries: Sequence[Delivery], report: Report) -> None:
        """Queue all; returns when each has its answer."""
        batch = _Open(len(deliveries), asyncio.get_running_loop().create_future())
        self._waiting.extend(_Waiting(delivery, report, batch) for delivery in deliveries)
        while len(self._senders) < min(IN_FLIGHT, -(-len(self._waiting) // MAX_BATCH)):
            self._senders.add(asyncio.get_running_loop().create_task(self._send()))
        await batch.done

    async def aclose(self) -> None:
        """Give up requests under way and close connections."""
        senders = list(self._senders)
        for task in senders:
            task.cancel()
        await asyncio.gather(*senders, return_exceptions=True)
        await self._pool.aclose()

    async def _send(self) -> None:
        try:
            while self._waiting:
                await self._send_group()
        finally:
            # At once, not in a callback: what is queued before that ran would have nobody to send it.
            if (me := asyncio.current_task()) is not None:
                self._senders.discard(me)

    async def _send_group(self) -> None:
        group = [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]
        live = [one for one in group if not one.delivery.cancelled]
        try:
            answers = await self._post([one.delivery for one in live]) if live else {}
            for one in live:
                if not one.delivery.cancelled:
                    one.report(one.delivery, answers[one.delivery.message_id])
        finally:
            for one in group:
                one.batch.one_less()

    async def _post(self, deliveries: list[Delivery]) -> dict[bytes, Answer]:
        body = msgspec.json.encode({"deliveries": [_item(delivery) for delivery in deliveries]})
        headers = {"host": self._host, "content-type": "application/json", "user-agent": "message-broker"}
        try:
            reply = await self._posted(headers, body)
        except TimeoutError:
            return _all(deliveries, f"the server did not answer within {self._timeout:g} s")
        except posting.FAILURES as error:
            return _all(deliveries, f"the server cannot be reached ({posting.reason(error)})")
        if reply.status not in {200, 207}:
            return _all(deliveries, f"the server answered {reply.status}")
        return _read(deliveries, reply)

    async def _posted(self, headers: dict[str, str], body: bytes) -> posting.Reply:
        try:
            return await posting.post(
                self._pool, self._url, headers, body, timeout=self._timeout, most=MAX_ANSWER
            )
        except (httpcore.RemoteProtocolError, httpcore.ReadError, httpcore.WriteError):
            # The server closed a kept connection as it was used; asking twice does no harm.
            return await posting.post(
                self._pool, self._url, headers, body, timeout=self._timeout, most=MAX_ANSWER
            )


def _item(delivery: Delivery) -> _Item:
    return _Item(
        ids.text(delivery.message_id),
        delivery.worker_id,
        _Claim(delivery.entry, delivery.count),
        delivery.cycle,
        delivery.attempt,
    )


def _all(deliveries: list[Delivery], reason: str) -> dict[bytes, Answer]:
    away = OwnSideAway(reason)
    return {delivery.message_id: away for delivery in deliveries}


def _read(deliveries: list[Delivery], reply: posting.Reply) -> dict[bytes, Answer]:
    try:
        results = msgspec.json.decode(reply.body, type=_Results).results
    except msgspec.MsgspecError:
        return _all(deliveries, "the server's answer is not understood")
    by_id = {result.message_id: result for result in results}
    return {delivery.message_id: _one(by_id.get(ids.text(delivery.message_id))) for delivery in deliveries}


def _one(result: _Result | None) -> Answer:
    if result is None:
        return OwnSideAway("the server's answer lacks this message", scope="message")
    if result.status == "delivered":
        return Accepted()
    if result.error in _CONTRADICTED:
        # The cycle may have ended in another way: holding it asks `open` again, which drops it if so.
        return OwnSideAway(f"the server answered {result.error}", scope="message")
    return OwnSideAway(f"the server answered {result.error or result.status}")
