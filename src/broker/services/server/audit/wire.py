"""Answers of the audit API; the OpenAPI document is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta


class SignedDigest(msgspec.Struct, frozen=True):
    """A digest of all streams, signed as it stands in `body`."""

    number: int
    body: Annotated[str, Meta(description="JSON; its very bytes (UTF-8) are signed.")]
    signature: Annotated[str, Meta(pattern="^[0-9a-f]{128}$", description="Ed25519, hex")]
    position: Annotated[str, Meta(description="Of its event.")] | None = None


class Digests(msgspec.Struct, frozen=True):
    """Digests, the first one first."""

    key: Annotated[str, Meta(description="The public key that signs now, PEM. Get it by another way, too.")]
    digests: Sequence[SignedDigest]
    next: Annotated[int, Meta(description="As `after`, leads on.")] | None


class Verified(msgspec.Struct, frozen=True):
    """What was checked: every digest's signature and place, and the events that the last of them cover."""

    ok: bool
    digests: int
    events: Annotated[int, Meta(description="Linked anew and held against the digests.")]
    signed_until: str | None
    problem: Annotated[str, Meta(description="What is wrong, and where.")] | None
