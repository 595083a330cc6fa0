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
    tag, subject, envelope, data = entry.tag.encode(), entry.subject, entry.envelope, entry.data
    position = str(entry.position).encode()
    # One update instead of ten: the projector links every event there is.
    return hashlib.sha256(
        b"".join(
            (
                previous,
                len(position).to_bytes(4, "big"),
                position,
                len(tag).to_bytes(4, "big"),
                tag,
                len(subject).to_bytes(4, "big"),
                subject,
                len(envelope).to_bytes(4, "big"),
                envelope,
                len(data).to_bytes(4, "big"),
                data,
            )
        )
    ).digest()
