"""Events as they leave the house: one JSON object a line, with names instead of positions in an array.

What must not leave (ciphertexts, keyed hashes of numbers, password hashes, sealed secrets) is replaced by a
commitment: SHA-256 of the field's bytes. Who holds the stored event can prove with it that it is the same
one; nobody can get the value back from it. Other bytes are shown in hex.

An export's line also carries the stored bytes themselves, the same commitments in them: from those the hash
is computed, and what the line shows is compared with them (`exported_verifier`, docs/audit.md).
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache, lru_cache
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from broker import clock
from broker.domain import ids
from broker.errors import UnknownEvent
from broker.events import chain, codec, types, upcasting
from broker.events import envelope as envelopes
from broker.events.codec import Stored
from broker.events.envelope import Envelope
from broker.events.positions import ACCESS, CONTROL

MESSAGE_ID_BYTES = 16
VERSION_DIGITS = 9


Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", description="SHA-256 in lower-case hex")]


class Withheld(msgspec.Struct, frozen=True):
    """In place of a value that an export does not show: the SHA-256 of its stored bytes."""

    withheld: Annotated[str, Meta(pattern="^sha256:[0-9a-f]{64}$")]


class ExportedLine(msgspec.Struct, frozen=True, gc=False):
    """One event of an export, a JSON object a line."""

    id: Annotated[str, Meta(pattern="^[a-z0-9]+:[0-9]+-[0-9]+$", description="stream:milliseconds-sequence")]
    stream: Annotated[str, Meta(pattern="^([0-9]+|control|access)$")]
    type: str
    version: Annotated[int, Meta(ge=1, description="of the stored event; data is in the current form")]
    at: Annotated[str, Meta(description="RFC 3339, UTC")]
    actor: str
    correlation_id: str | None
    causation_id: Annotated[str, Meta(description="id of the event that led to it")] | None
    subject: Annotated[str, Meta(description="a message id, or client:…, cert:…, user:…")]
    data: dict[str, Any]
    hash: Digest | None
    """Null where the chain could not be read, as without the database."""
    previous_hash: Digest | None


class StoredForm(msgspec.Struct, frozen=True, gc=False):
    """The bytes that the hash covers, base64."""

    envelope: bytes
    data: Annotated[
        list[str] | str,
        Meta(
            description="Parts in order: base64, and between two of them the SHA-256 (hex) of what is "
            "withheld. A text: number of parts and digest (hex) of data that is withheld as a whole."
        ),
    ]


class Inclusion(msgspec.Struct, frozen=True):
    """Proof that an event is under a signed digest: leaf `index` of `size`, and the hashes beside its way."""

    digest: int
    index: int
    size: int
    path: list[Digest]


class ProvedLine(ExportedLine, frozen=True, omit_defaults=True, gc=False):
    """A line of an export that is to be verified; `proof` where the lines before it may be left out."""

    stored: StoredForm
    proof: Inclusion | None = None


_encode = msgspec.json.Encoder().encode
_Line = TypeVar("_Line", bound=ExportedLine)


def export(stored: Stored, digest: bytes | None = None, previous: bytes | None = None) -> ExportedLine:
    """The exported form of a stored event; `digest` and `previous` are its place in the hash chain.

    An event that this version cannot read is exported all the same, its data withheld as a whole.
    """
    return _line(ExportedLine, stored, digest, previous, data_of(stored))


def proved(stored: Stored, digest: bytes, previous: bytes, proof: Inclusion | None = None) -> ProvedLine:
    """The same with all that a verification needs. Raises UnknownEvent for a tag that is not well-formed."""
    if not _tagged(stored.tag)[2]:
        raise UnknownEvent(f"{stored.position}: {stored.tag!r} is not a well-formed event tag.")
    data = data_of(stored)
    parts: list[str] | str | None = _parts(stored, data)
    if parts is None:
        parts = chain.data_digest(stored.tag, stored.data).hex()
        data = {"withheld": f"sha256:{parts[2:]}"}
    form = StoredForm(stored.envelope, parts)
    return _line(ProvedLine, stored, digest, previous, data, form, proof)


def _line(
    kind: type[_Line],
    event: Stored,
    digest: bytes | None,
    previous: bytes | None,
    data: dict[str, Any],
    *more: StoredForm | Inclusion | None,
) -> _Line:
    envelope = _envelope(event)
    name, version, _ = _tagged(event.tag)
    stream = event.position.stream
    # In the order of the fields: by their names it would take a microsecond longer, of six.
    return kind(
        str(event.position),
        stream,
        name,
        version,
        clock.iso(envelope.at),
        envelope.actor,
        envelopes.conversation(envelope, event.subject if stream.isdigit() else None),
        envelope.causation,
        subject_text(event),
        data,
        None if digest is None else digest.hex(),
        None if previous is None else previous.hex(),
        *more,
    )


@lru_cache(maxsize=256)
def _tagged(tag: str) -> tuple[str, int, bool]:
    """Name and version as they are shown, and whether the tag is well-formed: no other one is shown so."""
    name, _, number = tag.partition(".")
    version = int(number) if number.isdecimal() and len(number) <= VERSION_DIGITS else 1
    return name, version, upcasting.tag_of(name, version) == tag


def _parts(stored: Stored, shown: dict[str, Any]) -> list[str] | None:
    """The parts of the data to be shown; None where one of them might hold in plain what is withheld."""
    if stored.tag not in chain.COMMITTED and "withheld" not in shown:
        return [base64.b64encode(stored.data).decode()]
    parts = chain.split(stored.tag, stored.data)
    hidden = sum(isinstance(value, dict) and value.keys() == {"withheld"} for value in shown.values())
    if "withheld" in shown or len(parts) != 2 * hidden + 1:
        return None
    return [
        hashlib.sha256(part).hexdigest() if place % 2 else base64.b64encode(part).decode()
        for place, part in enumerate(parts)
    ]


def line(exported: ExportedLine) -> bytes:
    """The JSON of one event, without the line feed."""
    return _encode(exported)


def subject_text(stored: Stored) -> str:
    """The subject for people: a message id in canonical form, or the text of a control subject."""
    if stored.position.stream not in {CONTROL, ACCESS} and len(stored.subject) == MESSAGE_ID_BYTES:
        return ids.text(stored.subject)
    return stored.subject.decode("utf-8", "replace")


def data_of(stored: Stored) -> dict[str, Any]:
    """The event's fields by name, fit to be shown; the whole withheld where this version cannot read it."""
    try:
        return named(codec.decode(stored.tag, stored.data))
    except UnknownEvent:
        return _commitment(stored.data)


def named(event: types.Event) -> dict[str, Any]:
    """The exported `data` of an event: fields by name, bytes as hex, commitments for what is withheld."""
    found: dict[str, Any] = {}
    for name, withheld in _fields(type(event)):
        value = getattr(event, name)
        if withheld and value is not None:
            found[name] = _commitment(value if isinstance(value, bytes) else str(value).encode())
        else:
            found[name] = value.hex() if isinstance(value, bytes) else value
    return found


@cache
def _fields(kind: type[types.Event]) -> list[tuple[str, bool]]:
    """The fields of a type of event, and whether they are withheld."""
    return [(name, (kind.__name__, name) in types.WITHHELD) for name in kind.__struct_fields__]


def _commitment(value: bytes) -> dict[str, Any]:
    return {"withheld": f"sha256:{hashlib.sha256(value).hexdigest()}"}


def _envelope(stored: Stored) -> Envelope:
    try:
        return envelopes.decode(stored.envelope)
    except msgspec.DecodeError:
        # Its hash still covers the stored bytes; the time of its entry is the best there is.
        return Envelope(stored.position.ms, "unreadable")
