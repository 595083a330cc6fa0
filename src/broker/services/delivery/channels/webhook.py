"""HTTPS POST to the client's own address, signed after Standard Webhooks (https://www.standardwebhooks.com).

`webhook-id` is the message id: should the same message arrive twice, the recipient can drop the second.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ssl
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpcore
import msgspec

from broker import clock
from broker.domain import ids
from broker.domain.message import Accepted, Answer, Failed, NeedsPerson, Refused
from broker.services.delivery.channels import posting
from broker.services.delivery.channels.addresses import GuardedBackend
from broker.services.delivery.channels.base import Delivery, EachChannel

MAX_ANSWER = 16 * 1024
PREFIX = b"whsec_"
_WAITING = frozenset({429, 503})


class Webhook(EachChannel):
    """One POST a message. Whatever goes wrong with it is the recipient's failure and counts as an attempt."""

    name = "webhook"

    def __init__(
        self,
        *,
        timeout: float = 15.0,
        allow_private: bool = False,
        connections: int = 256,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._timeout = timeout
        self._allow_private = allow_private
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context or ssl.create_default_context(),
            max_connections=connections,
            max_keepalive_connections=min(connections, 64),
            keepalive_expiry=15.0,
            network_backend=GuardedBackend(allow_private=allow_private),
        )

    async def deliver_one(self, delivery: Delivery) -> Answer:
        """POST, and read the status."""
        url = delivery.target or ""
        if not url.startswith(("https://", "http://") if self._allow_private else "https://"):
            return NeedsPerson("the webhook's address is not https")
        if delivery.secret is None:
            return NeedsPerson("the webhook has no signing secret")
        body = _body(delivery)
        try:
            headers = _headers(delivery, delivery.secret, body)
            reply = await posting.post(self._pool, url, headers, body, timeout=self._timeout, most=MAX_ANSWER)
        except TimeoutError:
            return Failed(f"no answer within {self._timeout:g} s")
        except (
            binascii.Error,
            httpcore.UnsupportedProtocol,
            httpcore.LocalProtocolError,
            UnicodeError,
        ) as error:
            return NeedsPerson(f"the webhook's route cannot be used: {type(error).__name__}")
        except posting.FAILURES as error:
            return Failed(posting.reason(error))
        return _answer(reply)

    async def aclose(self) -> None:
        """Close connections."""
        await self._pool.aclose()


def sign(secret: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """The `webhook-signature` of version 1. `secret` is the key itself or `whsec_` and its base64."""
    key = base64.b64decode(secret[len(PREFIX) :] + b"==") if secret.startswith(PREFIX) else secret
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()


def _headers(delivery: Delivery, secret: bytes, body: bytes) -> dict[str, str]:
    message_id, now = ids.text(delivery.message_id), int(time.time())
    return {
        "host": _host(delivery.target or ""),
        "content-type": "application/json",
        "user-agent": "message-broker",
        "webhook-id": message_id,
        "webhook-timestamp": str(now),
        "webhook-signature": sign(secret, message_id, now, body),
    }


def _host(url: str) -> str:
    target = httpcore.URL(url)
    host = target.host.decode("ascii")
    bracketed = f"[{host}]" if ":" in host else host
    return bracketed if target.port is None else f"{bracketed}:{target.port}"


def _body(delivery: Delivery) -> bytes:
    plain = delivery.plain
    return msgspec.json.encode(
        {
            "message_id": ids.text(delivery.message_id),
            "client_id": delivery.client_id,
            "sender_number": plain.sender_number,
            "message_body": plain.message_body,
            "metadata": plain.metadata,
            "queued_at": clock.iso(delivery.queued_at),
        }
    )


def _answer(reply: posting.Reply) -> Answer:
    status = reply.status
    if 200 <= status < 300:
        return Accepted(status)
    if 300 <= status < 400:
        return Refused(f"HTTP {status}: redirects are not followed", status)
    wait = retry_after(reply.headers.get("retry-after")) if status in _WAITING else None
    return Refused(f"HTTP {status}", status, permanent=status == 410, retry_after=wait)


def retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header: a number or an HTTP date (RFC 9110, 10.2.3); None if neither."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(min(int(value[:12]), 10**9))
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
