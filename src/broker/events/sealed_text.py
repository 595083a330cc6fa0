"""Short contents sealed by the keyring as text, to be kept by somebody else: cookies."""

from __future__ import annotations

import base64

import msgspec

from broker.errors import KeyUnavailable, Undecryptable
from broker.events.keyring import Keyring


def seal(keyring: Keyring, content: bytes, purpose: bytes) -> str:
    """URL-safe text that nobody without the keyring reads or makes; good for this purpose alone."""
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(keyring.wrap(content, purpose))).decode()


def unseal(keyring: Keyring, text: str, purpose: bytes) -> bytes | None:
    """The content; None for anything that `seal` did not make for this purpose under these keys."""
    try:
        raw = base64.urlsafe_b64decode(text.encode("ascii"))
        key_id, sealed = msgspec.msgpack.decode(raw, type=tuple[str, bytes])
        return keyring.unwrap(key_id, sealed, purpose)
    except (ValueError, msgspec.MsgspecError, KeyUnavailable, Undecryptable):
        return None
