"""The hash chain: SHA-256 over the previous hash, the full id and the stored bytes, each with its length.

Nothing is decoded or encoded again, so that neither erasing a key nor upcasting breaks a proof.
"""

from __future__ import annotations

import hashlib
from typing import Final

from broker.events.codec import Stored

GENESIS: Final = bytes(32)


def link(previous: bytes, entry: Stored) -> bytes:
    """The hash of `entry` after `previous` (32 bytes each)."""
    parts = (str(entry.position).encode(), entry.tag.encode(), entry.subject, entry.envelope, entry.data)
    digest = hashlib.sha256(previous)
    for part in parts:
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    return digest.digest()
