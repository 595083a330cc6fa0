"""Clients as the registry knows them, and who may be registered and routed. Pure: no I/O."""

from __future__ import annotations

from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

from broker.domain import submission
from broker.errors import Conflict, NotFound, ValidationError

CHANNELS: Final = ("inbox", "webhook", "simulated")
MAX_TARGET: Final = 2048
MAX_DOMAIN: Final = 253

Status = Literal["active", "erased"]


class ClientEntry(msgspec.Struct, frozen=True, array_like=True):
    """A producer. Without a channel its messages go to the default one."""

    client_id: str
    domain: str | None = None
    channel: str | None = None
    target: str | None = None
    sealed_secret: bytes | None = None
    active_certificate: str | None = None
    """Fingerprint of the certificate that is current, 64 hex digits."""
    status: Status = "active"


def decide_register(existing: ClientEntry | None, client_id: str, domain: str | None = None) -> ClientEntry:
    """A new client. Raises ValidationError, or Conflict when the name is or was taken."""
    submission.client_name(client_id)
    if domain is not None and not (0 < len(domain) <= MAX_DOMAIN and domain.isprintable()):
        raise ValidationError("domain", f"must be 1 to {MAX_DOMAIN} printable characters")
    if existing is not None:
        # An erased client's name stays taken: its history would otherwise become another's.
        raise Conflict(
            f"The client {client_id} exists" + (", erased." if existing.status == "erased" else ".")
        )
    return ClientEntry(client_id, domain)


def decide_route(
    existing: ClientEntry | None,
    client_id: str,
    channel: str,
    target: str | None = None,
    sealed_secret: bytes | None = None,
) -> ClientEntry:
    """The client with another route. Raises NotFound, ValidationError."""
    entry = known(existing, client_id)
    if channel not in CHANNELS:
        raise ValidationError("channel", f"must be one of {', '.join(CHANNELS)}")
    if channel == "webhook":
        _check_url(target)
        if sealed_secret is None:
            raise ValidationError("secret", "is needed to sign what goes to a webhook")
    elif target is not None and len(target) > MAX_TARGET:
        raise ValidationError("target", f"must be at most {MAX_TARGET} characters")
    return msgspec.structs.replace(entry, channel=channel, target=target, sealed_secret=sealed_secret)


def known(existing: ClientEntry | None, client_id: str) -> ClientEntry:
    """The client, when it exists and is not erased. Raises NotFound."""
    if existing is None or existing.status != "active":
        raise NotFound(f"There is no client {client_id}.")
    return existing


def _check_url(target: str | None) -> None:
    if target is None or len(target) > MAX_TARGET:
        raise ValidationError("target", f"must be a URL of at most {MAX_TARGET} characters")
    if not _usable(target):
        raise ValidationError("target", "must be an http(s) URL with a host and without user or spaces")


def _usable(target: str) -> bool:
    try:
        parts = urlsplit(target)
        # A port outside 1-65535 is noticed only when asked for.
        named = parts.scheme in {"https", "http"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return named and parts.username is None and target.isprintable() and " " not in target
