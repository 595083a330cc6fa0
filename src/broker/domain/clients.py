"""Clients as the registry knows them, and who may be registered and routed. Pure: no I/O."""

from __future__ import annotations

import base64
import binascii
from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

from broker.domain import simulation, submission
from broker.errors import Conflict, NotFound, ValidationError

CHANNELS: Final = ("inbox", "webhook", "simulated")
MAX_TARGET: Final = 2048
MAX_DOMAIN: Final = 253
SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - how Standard Webhooks marks a secret
MAX_SECRET_BYTES: Final = 1024

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
    elif sealed_secret is not None:
        raise ValidationError("secret", f"is for webhooks; the channel {channel} takes none")
    elif channel == "inbox" and target is not None:
        raise ValidationError("target", "is not for the inbox, which takes none")
    elif target is not None and len(target) > MAX_TARGET:
        raise ValidationError("target", f"must be at most {MAX_TARGET} characters")
    if channel == "simulated":
        simulation.parse(target)
    return msgspec.structs.replace(entry, channel=channel, target=target, sealed_secret=sealed_secret)


def known(existing: ClientEntry | None, client_id: str) -> ClientEntry:
    """The client, when it exists and is not erased. Raises NotFound."""
    if existing is None or existing.status != "active":
        raise NotFound(f"There is no client {client_id}.")
    return existing


def signing_secret(text: str) -> bytes:
    """A webhook's signing secret as bytes: base64 after `whsec_`, else the text. Raises ValidationError."""
    try:
        raw = (
            base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
            if text.startswith(SECRET_PREFIX)
            else text.encode()
        )
    except binascii.Error:
        raise ValidationError("secret", f"is not base64 after {SECRET_PREFIX}") from None
    except UnicodeEncodeError:
        raise ValidationError("secret", "must be valid Unicode") from None
    if not 0 < len(raw) <= MAX_SECRET_BYTES:
        raise ValidationError("secret", f"must have 1 to {MAX_SECRET_BYTES} bytes")
    return raw


def shown_secret(secret: bytes) -> str:
    """A signing secret as its owner is told it: `whsec_…`."""
    return SECRET_PREFIX + base64.b64encode(secret).decode()


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
