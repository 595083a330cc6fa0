"""A producer's client: submits over mTLS and asks what became of it.

A time-out, a lost connection and a 503 leave it open whether a message was taken. So every submission carries
an idempotency key, and is repeated under it until the answer is known or the patience ends.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
import msgspec

from broker import clock, lifecycle
from broker.errors import BrokerError, NotFound
from broker.web import tls

MESSAGES: Final = "/api/v1/messages"
MAX_BATCH: Final = 1000
EXAMINE_SECONDS: Final = 2.0
"""So long a server may take to say that it does not like our certificate."""

_LATER: Final = frozenset({429, 502, 503, 504})
"""Answers after which the same request may be taken."""
_LATER_CODES: Final = frozenset(
    {"log_unavailable", "log_full", "trust_unproved", "overloaded", "key_unavailable"}
)
"""The same, for one message of a batch."""


class Unreachable(BrokerError):
    """Nothing listens there."""

    code = "unreachable"

    def __str__(self) -> str:
        return self.detail


class Untrusted(BrokerError):
    """The TLS handshake failed."""

    code = "handshake_failed"


class Unanswered(BrokerError):
    """The gateway gave no definite answer in time; whether the message was taken is unknown."""

    code = "unanswered"


class Detail(msgspec.Struct, frozen=True):
    """One thing that is wrong with a request."""

    field: str
    reason: str


class Refused(BrokerError):
    """The gateway refused."""

    def __init__(self, status: int, code: str, text: str, details: Sequence[Detail] = ()) -> None:
        self.status = status
        self.code = code
        self.details = tuple(details)
        super().__init__(text)

    def __str__(self) -> str:
        lines = [
            f"{self.detail} ({self.status} {self.code})" if self.status else f"{self.detail} ({self.code})"
        ]
        lines += [f"  {one.field}: {one.reason}" for one in self.details if one.reason not in self.detail]
        return "\n".join(lines)


class Message(msgspec.Struct, omit_defaults=True):
    """What is submitted; the gateway has the rules (see the contract of POST /api/v1/messages)."""

    sender_number: str
    message_body: str
    metadata: dict[str, Any] | None = None
    idempotency_key: str | None = None


class Accepted(msgspec.Struct, frozen=True):
    """A message that the log holds; `replayed`: an earlier request with the same key had brought it there."""

    message_id: str
    status: str
    queued_at: str
    position: str
    client_id: str | None = None
    replayed: bool = False


class _Refusal(msgspec.Struct, frozen=True):
    status: str
    error: str
    message: str = ""
    details: list[Detail] = []


class _Problem(msgspec.Struct, frozen=True):
    error: str
    message: str
    details: list[Detail] = []


class Client:
    """One producer's connections to a gateway at `url`; use as an async context manager. Times in seconds."""

    def __init__(
        self,
        url: str,
        context: ssl.SSLContext,
        *,
        timeout: float = 10.0,
        retry_for: float = 60.0,
        connections: int = 16,
        waiting: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`retry_for`: how long an unanswered request is repeated. `waiting` is told why, each time."""
        self.url = url
        self._context = context
        self._retry_for = retry_for
        self._waiting = waiting
        self._reached = False
        self._closed = 0
        """How often in a row the server closed a silent connection."""
        self._http = httpx.AsyncClient(
            base_url=url,
            verify=context,
            timeout=timeout,
            # Nothing of this machine's proxy settings may stand between two ends of mTLS.
            trust_env=False,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def submit(self, message: Message) -> Accepted:
        """Submit one message, under a key of its own if it has none.

        Raises Refused, Unreachable, Untrusted, or Unanswered when the outcome is unknown.
        """
        key = message.idempotency_key or new_key()
        body = msgspec.structs.replace(message, idempotency_key=None)
        headers = {"idempotency-key": key, "content-type": "application/json"}
        answer = await self._persist("POST", MESSAGES, msgspec.json.encode(body), headers)
        accepted = msgspec.json.decode(answer.content, type=Accepted)
        replayed = answer.headers.get("idempotent-replayed") == "true"
        return msgspec.structs.replace(accepted, replayed=replayed)

    async def batch(self, messages: Sequence[Message]) -> list[Accepted | Refused]:
        """Submit up to 1000 messages in one request; a result for each, in order. Raises as `submit`.

        Those of which it is not known whether they were taken are sent again.
        """
        keyed = [_keyed(message) for message in messages]
        results: list[Accepted | Refused | None] = [None] * len(keyed)
        deadline = clock.monotonic() + self._retry_for
        pauses = lifecycle.backoff(0.2)
        while open_ := [index for index, result in enumerate(results) if result is None]:
            found = await self._batch([keyed[index] for index in open_])
            late = clock.monotonic() >= deadline
            for index, result in zip(open_, found, strict=True):
                if late or isinstance(result, Accepted) or result.code not in _LATER_CODES:
                    results[index] = result
            if any(result is None for result in results):
                self._waiting("part of a batch was not taken")
                await asyncio.sleep(next(pauses))
        return [result for result in results if result is not None]

    async def status(self, message_id: str) -> dict[str, Any]:
        """What became of a message: the answer of GET /api/v1/messages/{id}. Raises as `submit`, NotFound."""
        try:
            answer = await self._persist("GET", f"{MESSAGES}/{message_id}")
        except Refused as error:
            if error.status == 404:
                raise NotFound(f"The gateway knows no message {message_id} of this client.") from error
            raise
        found: dict[str, Any] = msgspec.json.decode(answer.content)
        return found

    async def health(self) -> dict[str, Any]:
        """The gateway's health, well or not. Raises Unreachable or Untrusted."""
        try:
            answer = await self._http.get("/api/v1/health")
        except httpx.TransportError as error:
            raise Unreachable(self._failure(error)) from error
        found: dict[str, Any] = msgspec.json.decode(answer.content)
        return found

    async def _batch(self, messages: list[Message]) -> list[Accepted | Refused]:
        body = msgspec.json.encode({"messages": messages})
        answer = await self._persist("POST", f"{MESSAGES}/batch", body, {"content-type": "application/json"})
        results = msgspec.json.decode(answer.content)["results"]
        return [_result(result) for result in results]

    async def _persist(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """Ask until there is a definite answer, and raise it unless it is a success."""
        deadline = clock.monotonic() + self._retry_for
        pauses = lifecycle.backoff(0.2)
        while True:
            wait = next(pauses)
            try:
                answer = await self._http.request(method, path, content=body, headers=headers)
            except httpx.TransportError as error:
                reason = self._failure(error)
                if not self._reached:
                    await self._examine()
            else:
                self._reached = True
                if answer.is_success:
                    return answer
                refused = _refused(answer)
                if answer.status_code not in _LATER:
                    raise refused
                reason, wait = str(refused), max(wait, _retry_after(answer))
            if clock.monotonic() + wait > deadline:
                raise Unanswered(reason)
            self._waiting(reason)
            await asyncio.sleep(wait)

    async def _examine(self) -> None:
        """Raises Untrusted when the server refused our certificate twice: once might be a restart.

        With TLS 1.3 it judges after our side of the handshake is done and the request on its way; all that
        comes back is a closed connection, at best with an alert. So listen without saying anything.
        """
        url = httpx.URL(self.url)
        reason = "the server closes the connection after the handshake"
        try:
            async with asyncio.timeout(EXAMINE_SECONDS):
                reader, writer = await asyncio.open_connection(url.host, url.port or 443, ssl=self._context)
                try:
                    await reader.read(1)
                except ssl.SSLError as error:
                    reason = str(error)
                except ConnectionError:
                    pass
                finally:
                    writer.transport.abort()
        except (OSError, TimeoutError):
            # It listens to us, or is not there; neither says anything about the certificate.
            self._closed = 0
            return
        self._closed += 1
        if self._closed > 1:
            raise self._untrusted(reason)

    def _untrusted(self, text: str) -> Untrusted:
        return Untrusted(f"{self.url}: {text}. Are the certificates and ca.crt of this installation?")

    def _failure(self, error: httpx.TransportError) -> str:
        """Why there was no answer. Raises for what another try would not change."""
        text = str(error) or type(error).__name__
        if isinstance(error.__cause__, ssl.SSLError) or "SSL" in text or "CERTIFICATE" in text:
            raise self._untrusted(text) from error
        if isinstance(error, httpx.ConnectError) and not self._reached:
            raise Unreachable(f"Nothing listens on {self.url}: is `broker up` running?") from error
        return f"{self.url}: {text}"


def connect(url: str, certs_dir: Path, client: str, **options: Any) -> Client:
    """A Client with the certificate that lies in `certs_dir` for `client`; `options` are Client's.

    Raises NotFound when there is none.
    """
    folder = certs_dir / "clients" / client
    certificate, key, ca = folder / "client.crt", folder / "client.key", certs_dir / "ca.crt"
    for path in (ca, certificate, key):
        if not path.exists():
            raise NotFound(
                f"{path} is missing. `broker up` makes the one of the client demo; others: "
                f"`broker client register {client}`, then `broker cert issue {client}`."
            )
    return Client(url, tls.client_context(ca, certificate, key), **options)


def new_key() -> str:
    """A fresh idempotency key."""
    return secrets.token_hex(16)


def _keyed(message: Message) -> Message:
    if message.idempotency_key is not None:
        return message
    return msgspec.structs.replace(message, idempotency_key=new_key())


def _result(result: Any) -> Accepted | Refused:
    if "message_id" in result:
        return msgspec.convert(result, Accepted)
    refusal = msgspec.convert(result, _Refusal)
    return Refused(0, refusal.error, refusal.message or refusal.error, refusal.details)


def _refused(answer: httpx.Response) -> Refused:
    try:
        problem = msgspec.json.decode(answer.content, type=_Problem)
    except msgspec.DecodeError:
        # Not the gateway's words; something between answered.
        return Refused(
            answer.status_code, "unexpected_answer", f"The answer was {answer.reason_phrase or 'odd'}."
        )
    return Refused(answer.status_code, problem.error, problem.message, problem.details)


def _retry_after(answer: httpx.Response) -> float:
    value = answer.headers.get("retry-after", "")
    return float(value) if value.isdigit() else 0.0
