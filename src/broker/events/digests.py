"""Signed digests: at intervals, one statement over all streams that vouches for every event up to then.

A digest names, per stream, its last event, how many there are, the hash that chains them, and the Merkle root
over the hashes of those that the digest before did not cover. It is JSON, signed by Ed25519 as it stands, and
names the SHA-256 of the digest before. It is itself an event on `control`: archived like all others, so that
no lost database takes it away; the one after it covers it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from msgspec import Meta

from broker.errors import BrokerError
from broker.events import chain, merkle, positions, types
from broker.events.positions import Position

FORMAT: Final = 1
GENESIS: Final = "0" * 64
"""`previous` of the first digest."""
MAX_COVERED: Final = 65_536
"""Events of a stream that one digest adds, at most: what a proof has to hold in memory."""

Hex32 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class DigestInvalid(BrokerError):
    """A signed digest of the history is not right."""

    code = "digest_invalid"


class StreamDigest(msgspec.Struct, frozen=True):
    """One stream as a digest vouches for it."""

    last: Annotated[str, Meta(pattern="^[0-9]+-[0-9]+$", description="id of the last event; 0-0: none yet")]
    events: Annotated[int, Meta(ge=0, description="from the beginning of the stream")]
    head: Annotated[str, Meta(pattern="^[0-9a-f]{64}$", description="hash of the last event")]
    covered: Annotated[int, Meta(ge=0, description="the newest so many are under `root`")]
    root: Annotated[str, Meta(pattern="^[0-9a-f]{64}$", description="Merkle root over their hashes")]

    def end(self, stream: str) -> Position:
        """Of the last event."""
        return positions.at(stream, self.last)


UNCOVERED: Final = StreamDigest("0-0", 0, chain.GENESIS.hex(), 0, merkle.EMPTY.hex())
"""A stream before its first digest."""


class Digest(msgspec.Struct, frozen=True, kw_only=True):
    """What is signed."""

    format: int = FORMAT
    log_id: str
    number: Annotated[int, Meta(ge=1)]
    previous: Annotated[str, Meta(pattern="^[0-9a-f]{64}$", description="SHA-256 of the body before")]
    at: Annotated[str, Meta(description="RFC 3339, UTC")]
    key: Annotated[str, Meta(pattern="^[0-9a-f]{64}$", description="the public key that it is signed with")]
    streams: dict[str, StreamDigest]


class Signed(msgspec.Struct, frozen=True):
    """A digest as it is kept: the very text that was signed."""

    number: int
    body: str
    signature: bytes
    position: Position | None = None
    """Of its event."""

    @property
    def hash(self) -> str:
        """SHA-256 of the body, hex: what the next digest names."""
        return hashlib.sha256(self.body.encode()).hexdigest()

    def event(self) -> types.DigestSigned:
        """As it is recorded."""
        return types.DigestSigned(self.number, self.body, self.signature)


def encode(digest: Digest) -> str:
    """The text to sign."""
    return msgspec.json.encode(digest).decode()


def read(signed: Signed) -> Digest:
    """What a signed digest says; its signature is right for the key that it names. Raises DigestInvalid."""
    try:
        found = msgspec.json.decode(signed.body, type=Digest)
    except msgspec.MsgspecError as error:
        raise DigestInvalid(f"Digest {signed.number} cannot be read: {error}") from None
    if (found.format, found.number) != (FORMAT, signed.number):
        raise DigestInvalid(f"Digest {signed.number} says number {found.number}, format {found.format}.")
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(found.key))
        key.verify(signed.signature, signed.body.encode())
    except (InvalidSignature, ValueError):
        raise DigestInvalid(f"The signature of digest {signed.number} is wrong.") from None
    return found


def chained(every: Iterable[Signed]) -> list[Digest]:
    """All digests from the first on, each following on the one before. Raises DigestInvalid."""
    found: list[Digest] = []
    previous = GENESIS
    for number, signed in enumerate(every, 1):
        digest = read(signed)
        if digest.number != number or digest.previous != previous:
            raise DigestInvalid(f"Digest {digest.number} does not follow on digest {number - 1}.")
        found.append(digest)
        previous = signed.hash
    return found


def of(streams: Mapping[str, StreamDigest], stream: str) -> StreamDigest:
    """What a digest says of a stream, also of one that it does not name."""
    return streams.get(stream, UNCOVERED)
