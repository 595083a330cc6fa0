"""The exported form of events."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from broker.domain import ids
from broker.events import codec, envelope, exported, types
from broker.events.codec import Stored
from broker.events.positions import Position

MESSAGE = ids.new(0)


def stored(event: types.Event, stream: str = "0", subject: bytes = MESSAGE) -> Stored:
    place = Position(stream, 1_700_000_000_000, 3)
    stamp = envelope.encode(1_700_000_000_123, "client:demo", "c0ffee" + "0" * 26, "0:1-0")
    return Stored(place, codec.tag_of(event), subject, stamp, codec.encode(event))


def line(one: Stored, **chain: bytes) -> exported.ExportedLine:
    """Through JSON and back, as a reader has it."""
    return msgspec.json.decode(exported.line(exported.export(one, **chain)), type=exported.ExportedLine)


def test_names_instead_of_positions() -> None:
    """Envelope, subject, fields by name, bytes in hex; the hashes when they are known."""
    event = types.Failed("demo", 1, 5, "gave up")
    found = line(stored(event), digest=b"\x01" * 32, previous=b"\x02" * 32)
    assert (found.id, found.stream, found.type, found.version) == ("0:1700000000000-3", "0", "Failed", 1)
    assert (found.at, found.actor) == ("2023-11-14T22:13:20.123Z", "client:demo")
    assert (found.correlation_id, found.causation_id) == ("c0ffee" + "0" * 26, "0:1-0")
    assert found.subject == ids.text(MESSAGE)
    assert found.data == {"client_id": "demo", "cycle": 1, "attempt": 5, "reason": "gave up"}
    assert (found.hash, found.previous_hash) == ("01" * 32, "02" * 32)
    assert line(stored(event)).hash is None


def test_what_must_not_leave_is_committed_to() -> None:
    """Ciphertext and keyed number hash become the SHA-256 of their bytes; other bytes are hex, None is null."""
    data = line(stored(types.MessageSubmitted("demo", b"sealed", b"n" * 32, certificate=b"\xab" * 32))).data
    assert data["sealed"] == {"withheld": f"sha256:{hashlib.sha256(b'sealed').hexdigest()}"}
    assert set(data["number_hash"]) == {"withheld"}
    assert data["certificate"] == "ab" * 32
    assert data["idempotency"] is None
    hidden = types.UserCreated("7", "a@example.com", "user", "$2b$12$secret")
    assert b"$2b$" not in exported.line(exported.export(stored(hidden, "control", b"user:7")))
    assert line(stored(hidden, "control", b"user:7")).subject == "user:7"


@pytest.mark.parametrize("tag", ["Unheard", "Failed.9"])
def test_an_unknown_event_is_exported_without_its_data(tag: str) -> None:
    """What this version cannot read is not left out: its data is withheld as a whole, its type and version kept."""
    one = msgspec.structs.replace(stored(types.Failed("demo", 1, 1, "x")), tag=tag)
    found = line(one)
    assert (found.type, found.version) == (tag.partition(".")[0], 9 if "." in tag else 1)
    assert found.data == {"withheld": f"sha256:{hashlib.sha256(one.data).hexdigest()}"}
