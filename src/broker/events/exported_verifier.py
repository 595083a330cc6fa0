"""Verify an export of the broker's history, offline. Stands alone: Python 3.9 or newer and this file.

    python3 exported_verifier.py EXPORT.jsonl --digests DIGESTS.jsonl --key digests.pub

Reads an export (JSON lines, CSV or Parquet), recomputes every hash from the stored bytes that each line
carries, compares what the line shows with those bytes, and holds the chain against the signed digests. Names
the first event that was changed, is missing, was inserted or is out of order, and exits 1. `docs/audit.md`
describes every byte. One file on purpose, longer than others: an auditor reads it and carries it away.

The packages `msgspec` and `cryptography` make it faster where they are installed; nothing depends on them.
Only Parquet needs a package to be read, `pyarrow`.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import copy
import csv
import gc
import hashlib
import io
import itertools
import json
import marshal
import os
import signal
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from functools import lru_cache
from typing import IO, Any, NamedTuple

msgspec: Any = None
try:
    import msgspec
except ImportError:  # slower, the same
    pass
try:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
except ImportError:
    Ed25519PublicKey = None  # type: ignore[assignment,misc]

GENESIS = "0" * 64
EMPTY = hashlib.sha256(b"").hexdigest()
PROGRESS = 10_000
PART = 1 << 22
"""Bytes of a file that one process looks at, at a time."""
LARGE = 1 << 25
"""Bytes from which on a file is looked at by several."""
MOST_PROCESSES = 32
HELPER = "--helper"
"""What this script is started with by itself."""
MOST_HIDDEN = 1 << 26
MANGLED = (
    AttributeError,
    IndexError,
    KeyError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)

# The fields of each event in their order; what an older, shorter one lacks is as in DEFAULTS, else null.
FIELDS: dict[str, tuple[str, ...]] = {
    name: tuple(fields.split())
    for name, fields in {
        "MessageSubmitted": "client_id sealed number_hash certificate idempotency request_hash domain",
        "DeliveryAttempted": "client_id cycle attempt channel succeeded latency_ms code error",
        "RetryScheduled": "client_id cycle attempt delay_ms",
        "DeliveryDue": "client_id cycle attempt",
        "Delivered": "client_id cycle attempt",
        "Failed": "client_id cycle attempt reason",
        "MessageParked": "client_id cycle attempt reason",
        "ResendRequested": "client_id cycle sealed reason",
        "MessageDiscarded": "client_id cycle attempt reason",
        "ClientRegistered": "client_id domain",
        "ClientRouteChanged": "client_id channel target sealed_secret",
        "ClientErased": "client_id reason",
        "CertIssued": "fingerprint serial client_id role not_before_ms not_after_ms",
        "CertRenewed": "fingerprint serial client_id role not_before_ms not_after_ms replaces"
        " overlap_until_ms",
        "CertRevoked": "fingerprint serial client_id reason",
        "UserCreated": "user_id email role password_hash client_ids",
        "UserRoleChanged": "user_id role",
        "UserClientsChanged": "user_id client_ids",
        "UserDisabled": "user_id reason",
        "PasswordChanged": "user_id password_hash",
        "KeyRotated": "kind key_id client_id state",
        "ReplayStarted": "projection version",
        "ReplayFinished": "projection version outcome events",
        "DigestSigned": "number body signature",
        "LoginSucceeded": "user_id address",
        "LoginFailed": "account_hash address count",
        "LoggedOut": "user_id",
        "BodyRead": "message_id client_id reason",
        "HistoryExported": "format filters events",
    }.items()
}
DEFAULTS: dict[tuple[str, str], Any] = {
    ("UserCreated", "client_ids"): [],
    ("KeyRotated", "state"): "active",
    ("LoginFailed", "count"): 1,
}
COMMITTED: dict[str, tuple[int, ...]] = {
    "MessageSubmitted": (1, 2),
    "ResendRequested": (2,),
    "ClientRouteChanged": (3,),
    "UserCreated": (3,),
    "PasswordChanged": (1,),
}
SHOWN = (
    "id",
    "stream",
    "type",
    "version",
    "at",
    "actor",
    "correlation_id",
    "causation_id",
    "subject",
    "data",
    "hash",
    "previous_hash",
)

COMPLETE = {*SHOWN, "stored"}
PROVED = {*COMPLETE, "proof"}
STORED = {"envelope", "data"}

# Of CSV and Parquet.
COLUMNS = (*SHOWN, "stored", "proof")
AT = COLUMNS.index("at")
NESTED = ("data", "stored")
TEXTS = ("type", "actor", "correlation_id", "causation_id", "subject")
FORMULA = tuple("=+-@\t\r'")
PARQUET_ROWS = 1024

Line = dict[str, Any]


class Bad(Exception):
    """What is wrong, and where: the first such event."""

    def __init__(self, where: str, kind: str, detail: str) -> None:
        super().__init__(f"{where}: {kind}: {detail}")
        self.where, self.kind, self.detail = where, kind, detail


class Unreadable(ValueError):
    """The form of an export needs a package that is not here."""


# -- Bytes ------------------------------------------------------------------------------------------------


def framed(part: bytes) -> bytes:
    """With its length in front."""
    return len(part).to_bytes(4, "big") + part


@lru_cache(maxsize=4096)
def framed_text(text: str) -> bytes:
    """The same of a text; there are few tags."""
    return framed(text.encode())


def raw_parts(parts: list[str]) -> list[bytes]:
    """Literal parts from base64, commitments between them from hex. Raises ValueError."""
    return [commitment(part) if place % 2 else literal(part) for place, part in enumerate(parts)]


def data_digest(parts: list[bytes]) -> bytes:
    """Number of parts and SHA-256."""
    if len(parts) == 1:
        return b"\x01" + hashlib.sha256(parts[0]).digest()
    joined = []
    for place, part in enumerate(parts):
        joined += [part] if place % 2 else [len(part).to_bytes(4, "big"), part]
    return bytes((len(parts),)) + hashlib.sha256(b"".join(joined)).digest()


def literal(text: str) -> bytes:
    """The bytes of canonical base64. Raises ValueError."""
    raw = binascii.a2b_base64(text)
    if binascii.b2a_base64(raw, newline=False).decode() != text:
        raise ValueError("not canonical base64")
    return raw


def commitment(text: str) -> bytes:
    """The 32 bytes of lower-case hex. Raises ValueError."""
    raw = bytes.fromhex(text)
    if len(raw) != 32 or raw.hex() != text:
        raise ValueError("not 64 lower-case hex digits")
    return raw


def unpack(data: bytes) -> Any:
    """One msgpack value. Raises ValueError and the like."""
    if msgspec is not None:
        try:
            return msgspec.msgpack.decode(data)
        except msgspec.MsgspecError as error:
            raise ValueError(str(error)) from None
    value, end = _unpacked(data, 0)
    if end != len(data):
        raise ValueError("trailing bytes")
    return value


_NUMBERS = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_TEXTS = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_ARRAYS = {0xDC: 2, 0xDD: 4}
_MAPS = {0xDE: 2, 0xDF: 4}


def _unpacked(data: bytes, at: int) -> tuple[Any, int]:
    kind = data[at]
    at += 1
    if kind <= 0x7F or kind >= 0xE0:
        return (kind if kind <= 0x7F else kind - 256), at
    if kind in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[kind], at
    if kind in _NUMBERS:
        size = struct.calcsize(_NUMBERS[kind])
        return struct.unpack(_NUMBERS[kind], data[at : at + size])[0], at + size
    for kinds, low, high, mask in (
        (_TEXTS, 0xA0, 0xBF, 0x1F),
        (_ARRAYS, 0x90, 0x9F, 0x0F),
        (_MAPS, 0x80, 0x8F, 0x0F),
        (_BYTES, 1, 0, 0),
    ):
        if low <= kind <= high:
            return _content(data, at, kinds, kind & mask)
        if kind in kinds:
            size = kinds[kind]
            return _content(data, at + size, kinds, int.from_bytes(data[at : at + size], "big"))
    raise ValueError(f"msgpack byte {kind:#x}")


def _content(data: bytes, at: int, kinds: dict[int, int], count: int) -> tuple[Any, int]:
    if kinds is _BYTES or kinds is _TEXTS:
        if at + count > len(data):
            raise ValueError("cut short")
        raw = data[at : at + count]
        return (raw if kinds is _BYTES else raw.decode()), at + count
    found = []
    for _ in range(count * (2 if kinds is _MAPS else 1)):
        value, at = _unpacked(data, at)
        found.append(value)
    # Python 3.9 has no strict zip.
    return (dict(zip(found[::2], found[1::2])) if kinds is _MAPS else found), at  # noqa: B905


def whole(parts: list[bytes]) -> bytes:
    """The stored data with zeros in place of what is withheld: its length stands before each gap."""
    data = parts[0]
    for part in parts[2::2]:
        data += bytes(_gap(data)) + part
    return data


def _gap(data: bytes) -> int:
    """The length that the last, cut value of an array announces."""
    at, end = 1, len(data)
    while at < end:
        kind = data[at]
        width = _TEXTS.get(kind) or _BYTES.get(kind)
        if 0xA0 <= kind <= 0xBF:
            start, size = at + 1, kind & 0x1F
        elif width:
            start, size = at + 1 + width, int.from_bytes(data[at + 1 : at + 1 + width], "big")
        else:
            at = _unpacked(data, at)[1]
            continue
        if start == end and size <= MOST_HIDDEN:
            return size
        at = start + size
    raise ValueError("no value is cut here")


# -- What a line shows --------------------------------------------------------------------------------------


@lru_cache(maxsize=1024, typed=True)
def iso(ms: int) -> str:
    """RFC 3339 in UTC with milliseconds."""
    second, rest = divmod(ms, 1000)
    return f"{_second(second)}.{rest:03d}Z"


@lru_cache(maxsize=64)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")  # noqa: UP017 - nor UTC


def same(one: Any, other: Any) -> bool:
    """Equal in value and kind: in JSON, `1`, `1.0` and `true` are not the same."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def alike(one: list[Any], other: list[Any]) -> bool:
    """As `same`, for lists of which few hold lists or objects."""
    kinds = list(map(type, one))
    if one != other or kinds != list(map(type, other)):
        return False
    return not (dict in kinds or list in kinds) or all(
        same(*pair)
        for kind, *pair in zip(kinds, one, other)  # noqa: B905 - Python 3.9 has no strict zip
        if kind is dict or kind is list
    )


@lru_cache(maxsize=4096)
def subject_bytes(stream: str, text: str) -> bytes:
    """The stored subject: 16 bytes of a message id in a partition, else the text."""
    if not stream.isdigit():
        return text.encode()
    raw = bytes.fromhex(text.replace("-", ""))
    shown = raw.hex()
    if len(raw) != 16 or f"{shown[:8]}-{shown[8:12]}-{shown[12:16]}-{shown[16:20]}-{shown[20:]}" != text:
        raise ValueError("not a message id")
    return raw


def check_envelope(line: Line, envelope: bytes, ms: int, subject: bytes) -> None:
    """Time, actor, correlation and causation are those of the stored envelope. Raises Bad."""
    try:
        at, actor, correlation, causation = [*unpack(envelope), None, None][:4]
        expected = [iso(at), actor, _conversation(correlation, subject, line["stream"]), causation]
    except MANGLED:
        causation = None
        expected = [iso(ms), "unreadable", _conversation(None, subject, line["stream"]), None]
    shown = [line["at"], line["actor"], line["correlation_id"], line["causation_id"]]
    # What equals a text, or nothing, is one; numbers, of which that is not so, have no place here.
    plain = type(expected[1]) is str and (causation is None or type(causation) is str)
    if shown != expected or not (plain or alike(shown, expected)):
        raise Bad(line["id"], "changed", "it shows another time, actor or conversation than was recorded")


def _conversation(correlation: bytes | None, subject: bytes, stream: str) -> str | None:
    if correlation is None:
        return subject.hex() if stream.isdigit() else None
    return (
        correlation.hex() if len(correlation) == 16 else correlation.lstrip(b"=").decode("utf-8", "replace")
    )


@lru_cache(maxsize=4096)
def plain_data(tag: str, part: str) -> tuple[bytes, list[Any] | None]:
    """Digest, and values as they are to be shown, of data in one part: much of it is like that of others."""
    raw = literal(part)
    return data_digest([raw]), expected(tag, [raw])


def expected(tag: str, parts: list[bytes]) -> list[Any] | None:
    """The values that a line must show, in the order of FIELDS; None for a type that is not known here."""
    names = FIELDS.get(tag)
    if names is None:
        return None
    try:
        unpacked = unpack(whole(parts))[: len(names)]
    except MANGLED:
        # Then no line can show it.
        return []
    found = [value.hex() if type(value) is bytes else value for value in unpacked]
    hidden = iter(parts[1::2])
    for place in COMMITTED.get(tag, ()):
        if place < len(found) and found[place] is not None:
            found[place] = {"withheld": f"sha256:{next(hidden, b'').hex()}"}
    return found + [DEFAULTS.get((tag, name)) for name in names[len(found) :]]


def check_data(line: Line, tag: str, values: list[Any]) -> None:
    """The fields shown are those of the stored data. Raises Bad."""
    names, shown = FIELDS[tag], line["data"]
    if len(shown) != len(names):
        raise Bad(line["id"], "changed", "it shows other fields than its type has")
    given = [*map(shown.__getitem__, names)]
    if not alike(given, values):
        wrong = [name for name, *pair in zip(names, given, values) if not same(*pair)]  # noqa: B905
        raise Bad(line["id"], "changed", f"it shows another {', '.join(wrong)} than was recorded")


# -- Digests ------------------------------------------------------------------------------------------------


class End(NamedTuple):
    """Where a digest that adds to a stream ends: its last event, how many there are then, and its hash."""

    number: int
    at: tuple[int, int]
    events: int
    head: str


class Digests:
    """The signed digests, checked: signatures, chain, growth. `trusted`: whether a key vouches for them."""

    def __init__(self, given: Iterable[Line], keys: list[bytes]) -> None:
        by_number: dict[int, tuple[str, str]] = {}
        for one in given:
            try:
                found = one.get("data", one)
                number, body, signature = found["number"], found["body"], found["signature"]
                known = by_number.setdefault(int(number), (body, signature))
            except MANGLED:
                raise Bad("digests", "unreadable", "a line is no signed digest") from None
            if known != (body, signature):
                raise Bad(f"digest {number}", "changed", "two digests have this number")
        self.trusted = bool(keys)
        self.every: list[Line] = []
        self.ends: dict[str, list[End]] = {}
        self.places: set[tuple[int, int]] = set()
        """Of the ends, of whatever stream."""
        previous, before = GENESIS, None
        for number in range(1, max(by_number, default=0) + 1):
            if number not in by_number:
                raise Bad(f"digest {number}", "missing", "a later one is there")
            body, signature = by_number[number]
            try:
                before = self._checked((number, body, signature), keys, previous, before)
                self._end(number, before)
            except MANGLED as error:
                raise Bad(f"digest {number}", "unreadable", str(error)) from None
            self.every.append(before)
            previous = hashlib.sha256(body.encode()).hexdigest()

    def _end(self, number: int, digest: Line) -> None:
        for stream, state in digest["streams"].items():
            known = self.ends.setdefault(stream, [])
            if state["events"] > (known[-1].events if known else 0):
                known.append(End(number, entry(state["last"]), state["events"], state["head"]))
                self.places.add(known[-1].at)

    @classmethod
    def checked(cls, every: list[Line]) -> Digests:
        """Of digests that were checked before."""
        found = cls([], [])
        found.every = every
        for number, digest in enumerate(every, 1):
            found._end(number, digest)
        return found

    @staticmethod
    def _checked(given: tuple[int, str, str], keys: list[bytes], previous: str, before: Line | None) -> Line:
        number, body, signature = given
        where, digest = f"digest {number}", parse(body.encode())
        key = bytes.fromhex(digest["key"])
        if keys and key not in keys:
            raise Bad(where, "untrusted", f"it is signed with another key, {key.hex()}")
        if not signed_by(key, bytes.fromhex(signature), body.encode()):
            raise Bad(where, "changed", "its signature is wrong")
        if (digest["format"], digest["number"], digest["previous"]) != (1, number, previous):
            raise Bad(where, "out of order", "it does not follow on the one before")
        if before is not None and digest["log_id"] != before["log_id"]:
            raise Bad(where, "changed", "it is of another log")
        for stream, state in digest["streams"].items():
            known = (before or {"streams": {}})["streams"].get(stream, {"events": 0, "last": "0-0"})
            back = entry(state["last"]) < entry(known["last"])
            if back or state["events"] != known["events"] + state["covered"]:
                raise Bad(where, "changed", f"its count of stream {stream} does not continue the one before")
        return digest  # type: ignore[no-any-return]

    def bounds(self, number: int, stream: str) -> tuple[tuple[int, int], Line]:
        """After which entry the digest of this number covers a stream, and what it says of it."""
        if number < 1:
            raise IndexError(number)
        before = self.every[number - 2]["streams"].get(stream) if number > 1 else None
        return entry(before["last"] if before else "0-0"), self.every[number - 1]["streams"][stream]


def entry(text: str) -> tuple[int, int]:
    """`ms-seq` as two numbers."""
    ms, _, seq = text.partition("-")
    return int(ms), int(seq)


def under_root(leaf: bytes, index: int, size: int, path: list[str]) -> str:
    """The Merkle root (RFC 9162, 2.1.3.2) to which a path leads from a leaf."""
    if not 0 <= index < size:
        raise ValueError("no such leaf")
    value, beside = hashlib.sha256(b"\x00" + leaf).digest(), iter(path)
    while size > 1:
        if index ^ 1 < size:
            other = commitment(next(beside, ""))
            value = hashlib.sha256(b"\x01" + (other + value if index & 1 else value + other)).digest()
        index, size = index >> 1, (size + 1) >> 1
    if next(beside, None) is not None:
        raise ValueError("the path is too long")
    return value.hex()


# -- Ed25519 (RFC 8032, 5.1.7), for where no package does it -------------------------------------------------

_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, _P - 2, _P) % _P
_ROOT = pow(2, (_P - 1) // 4, _P)


def signed_by(key: bytes, signature: bytes, content: bytes) -> bool:
    """Whether the signature is that of the public key."""
    if Ed25519PublicKey is not None:
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(signature, content)
        except (InvalidSignature, ValueError):
            return False
        return True
    return plainly_signed_by(key, signature, content)


def plainly_signed_by(key: bytes, signature: bytes, content: bytes) -> bool:
    """The same in plain Python; some milliseconds."""
    if len(key) != 32 or len(signature) != 64:
        return False
    public, first = _point(key), _point(signature[:32])
    scalar = int.from_bytes(signature[32:], "little")
    if public is None or first is None or scalar >= _L:
        return False
    digest = hashlib.sha512(signature[:32] + key + content).digest()
    base = _point((4 * pow(5, _P - 2, _P) % _P).to_bytes(32, "little"))
    left = _times(base, scalar)
    right = _plus(first, _times(public, int.from_bytes(digest, "little") % _L))
    return not any((left[at] * right[2] - right[at] * left[2]) % _P for at in (0, 1))


def _point(raw: bytes) -> tuple[int, int, int, int] | None:
    """A point in extended coordinates; None for what is none."""
    y = int.from_bytes(raw, "little")
    sign, y = y >> 255, y & (1 << 255) - 1
    if y >= _P:
        return None
    square = (y * y - 1) * pow(_D * y * y + 1, _P - 2, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * _ROOT % _P
    if (x * x - square) % _P or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = _P - x
    return x, y, 1, x * y % _P


def _plus(one: Any, other: Any) -> tuple[int, int, int, int]:
    a = (one[1] - one[0]) * (other[1] - other[0]) % _P
    b = (one[1] + one[0]) * (other[1] + other[0]) % _P
    c = 2 * one[3] * other[3] * _D % _P
    d = 2 * one[2] * other[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _times(point: Any, scalar: int) -> tuple[int, int, int, int]:
    found: Any = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            found = _plus(found, point)
        point, scalar = _plus(point, point), scalar >> 1
    return found  # type: ignore[no-any-return]


def public_key(text: str) -> bytes:
    """A public key out of PEM or hex. Raises ValueError."""
    lines = [each.strip() for each in text.strip().splitlines()]
    if lines and lines[0] == "-----BEGIN PUBLIC KEY-----":
        raw = base64.b64decode("".join(lines[1:-1]), validate=True)
        if raw[:12] != bytes.fromhex("302a300506032b6570032100"):
            raise ValueError("not an Ed25519 key")
        raw = raw[12:]
    else:
        raw = bytes.fromhex("".join(lines))
    if len(raw) != 32:
        raise ValueError("not an Ed25519 public key")
    return raw


# -- The walk -----------------------------------------------------------------------------------------------


class Stream:
    """How far a stream was followed."""

    __slots__ = ("at", "before", "events", "head", "last_id", "next_end", "raw", "unsigned")

    def __init__(self) -> None:
        self.at = (0, 0)
        self.head = self.before = GENESIS
        """Hash of the last event, and of the one before it."""
        self.raw = bytes(32)
        """The bytes of `head`."""
        self.last_id = self.unsigned = ""
        """The last event, and the first after the newest digest."""
        self.events = 0
        self.next_end = 0
        """Place of the next digest among those that end in the stream."""

    def mark(self) -> Mark:
        """How far it is."""
        return self.at, self.head, self.before, self.last_id, self.events


class Verifier:
    """Takes the lines of an export one after another, then `finish`. Raises Bad at the first that is wrong.

    `filtered`: it holds a selection, each line with a proof; None: the first line tells. `unsigned`: events
    after the newest digest are allowed.
    """

    def __init__(self, digests: Digests, *, filtered: bool | None = None, unsigned: bool = False) -> None:
        self.filtered = filtered
        self._unsigned = unsigned
        self.streams: dict[str, Stream] = {}
        self.events = self.uncompared = 0
        self.digests = digests

    def take(self, line: Line) -> None:
        """One event. Raises Bad."""
        try:
            self._take(line)
        except MANGLED as error:
            where = str(line["id"]) if "id" in line else f"event {self.events + 1}"
            raise Bad(
                where, "changed", f"it is no line of an export ({type(error).__name__}: {error})"
            ) from None
        self.events += 1

    def _take(self, line: Line) -> None:
        where, stream, digest = line["id"], line["stream"], line["hash"]
        proof = line.get("proof")
        if self.filtered is None:
            self.filtered = proof is not None
        if line.keys() != (PROVED if self.filtered else COMPLETE):
            raise Bad(where, "changed", "it has not the fields of an export's line")
        own, _, entry_id = where.partition(":")
        position = entry(entry_id)
        if own != stream or f"{own}:{position[0]}-{position[1]}" != where:
            raise Bad(where, "changed", "its id is not one of its stream")
        state = self.streams.get(stream)
        if state is None:
            state = self.streams[stream] = self._begun(line)
        if position <= state.at:
            kind = "inserted" if position == state.at else "out of order"
            raise Bad(where, kind, f"it comes after {state.last_id}")
        known = state.raw if line["previous_hash"] == state.head else commitment(line["previous_hash"])
        raw = self._bytes(line, position[0], known)
        if self.filtered:
            self._proved(where, stream, position, raw, proof)
        elif known is not state.raw:
            self._follows(line, state)
        state.before = state.head
        state.at, state.head, state.raw, state.last_id = position, digest, raw, where
        state.events += 1
        if not self.filtered:
            self._held(stream, state)

    def join(self, part: Part) -> bool:
        """Go on after a part that is right by itself; False, and nothing done, where it does not fit here."""
        if self.filtered not in {None, part.filtered}:
            return False
        after: dict[str, Stream] = {}
        for stream, (first, previous, marks) in part.streams.items():
            state = copy.copy(self.streams.get(stream) or Stream())
            if first <= state.at or not (part.filtered or previous == state.head):
                return False
            events = state.events
            for mark in marks:
                state.at, state.head, state.before, state.last_id, more = mark
                state.raw, state.events = bytes.fromhex(state.head), events + more
                try:
                    if not part.filtered:
                        self._held(stream, state)
                except Bad:
                    return False
            after[stream] = state
        self.streams.update(after)
        self.filtered = part.filtered
        self.events += part.events
        self.uncompared += part.uncompared
        return True

    def _begun(self, line: Line) -> Stream:  # noqa: ARG002 - see Parted
        """A stream's state before its first line."""
        return Stream()

    def _bytes(self, line: Line, ms: int, previous: bytes) -> bytes:
        """The hash, which is that of the stored bytes; these are what the line shows. Raises Bad."""
        version, kind, stored = line["version"], line["type"], line["stored"]
        tag = kind if version == 1 else f"{kind}.{version:d}"
        subject, envelope = subject_bytes(line["stream"], line["subject"]), literal(stored["envelope"])
        parts = stored["data"]
        if type(version) is not int or "." in kind or stored.keys() != STORED:
            raise Bad(line["id"], "changed", "its type or version is none")
        values: list[Any] | None = None
        if hidden := isinstance(parts, str):
            digest = bytes.fromhex(parts)
        elif len(parts) == 1:
            digest, values = plain_data(tag, parts[0])
        else:
            raw = raw_parts(parts)
            digest, values = data_digest(raw), expected(tag, raw)
        hashed = (
            previous,
            framed(line["id"].encode()),
            framed_text(tag),
            framed(subject),
            framed(envelope),
            digest,
        )
        found = hashlib.sha256(b"".join(hashed)).digest()
        if found.hex() != line["hash"]:
            raise Bad(line["id"], "changed", "its hash is not that of its bytes")
        check_envelope(line, envelope, ms, subject)
        if hidden and (tag in FIELDS or not same(line["data"], {"withheld": f"sha256:{parts[2:]}"})):
            raise Bad(line["id"], "changed", "its data is not what was recorded, or is hidden")
        if values is None:
            self.uncompared += 1
        else:
            check_data(line, tag, values)
        return found

    @staticmethod
    def _follows(line: Line, state: Stream) -> None:
        previous = line["previous_hash"]
        if previous == state.head:
            return
        if state.last_id and previous == state.before:
            raise Bad(state.last_id, "inserted", f"{line['id']} follows on the event before it")
        after = f"after {state.last_id}" if state.last_id else "at the beginning of the stream"
        raise Bad(line["id"], "missing", f"one or more events {after}, before this one")

    def _held(self, stream: str, state: Stream) -> None:
        """Hold the chain against the digest that ends here, or should have. Raises Bad."""
        ends = self.digests.ends.get(stream, ())
        if state.next_end == len(ends):
            state.unsigned = state.unsigned or state.last_id
            return
        number, last, events, head = ends[state.next_end]
        if events > state.events:
            if last > state.at:
                return
            detail = f"digest {number} vouches for more events than the {state.events} up to here"
            raise Bad(state.last_id, "inserted, or missing before it", detail)
        if (events, last, head) != (state.events, state.at, state.head):
            first, _ = self.digests.bounds(number, stream)
            raise Bad(
                f"stream {stream} after {first[0]}-{first[1]}, up to {last[0]}-{last[1]}",
                "changed, missing or inserted",
                f"digest {number} vouches for other events; all hashes after it were made anew",
            )
        state.next_end += 1

    def _proved(self, where: str, stream: str, position: tuple[int, int], leaf: bytes, proof: Any) -> None:
        number, index, size, path = (proof[name] for name in ("digest", "index", "size", "path"))
        if number > len(self.digests.every):
            raise Bad(where, "unproved", f"digest {number}, which it refers to, is not among those given")
        after, said = self.digests.bounds(number, stream)
        right = after < position <= entry(said["last"]) and size == said["covered"] and len(proof) == 4
        if (
            not right
            or not all(type(one) is int for one in (number, index, size))
            or under_root(leaf, index, size, path) != said["root"]
        ):
            raise Bad(where, "changed or inserted", f"digest {number} does not vouch for it")

    def finish(self) -> None:
        """After the last line. Raises Bad when digests vouch for more events than came, or for fewer."""
        if self.filtered or not self.digests.every:
            return
        for state in self.streams.values():
            if state.unsigned and not self._unsigned:
                detail = "no digest vouches for it; get newer ones, or allow unsigned events"
                raise Bad(state.unsigned, "unproved or inserted", detail)
        for stream, said in self.digests.every[-1]["streams"].items():
            state = self.streams.get(stream, Stream())
            if said["events"] > state.events:
                after = state.last_id or "the beginning of the stream"
                detail = f"the newest digest vouches for events after {after}"
                raise Bad(f"{stream}:{said['last']}", "missing", detail)

    def report(self) -> Line:
        """What was checked, and what cannot be."""
        every = self.digests.every
        covered = every[-1]["streams"] if every else {}
        late = sum(
            max(0, state.events - covered.get(stream, {"events": 0})["events"])
            for stream, state in self.streams.items()
        )
        notes = []
        if self.filtered:
            notes.append("A filtered export proves what it contains, not what it lacks.")
        elif late and every:
            notes.append(f"{late} events came after the newest digest: chained, but not signed for yet.")
        if not every:
            notes.append("No digests were given: whoever could write the whole file could have made it anew.")
        elif not self.digests.trusted:
            notes.append(
                "No key was given: the digests vouch for themselves. Get the key from whom you trust."
            )
        if self.uncompared:
            notes.append(
                f"{self.uncompared} events are of types unknown here: proved, but not compared with names."
            )
        return {
            "ok": True,
            "events": self.events,
            "streams": {name: state.events for name, state in self.streams.items()},
            "complete": not self.filtered,
            "digests": len(every),
            "key_trusted": self.digests.trusted and bool(every),
            "signed_until": every[-1]["at"] if every else None,
            "notes": notes,
        }


# -- Files --------------------------------------------------------------------------------------------------


def _unique(pairs: list[tuple[str, Any]]) -> Line:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def parse(text: bytes) -> Any:
    """JSON in which no name stands twice. Raises ValueError."""
    if msgspec is not None:
        try:
            found = msgspec.json.decode(text)
            # What comes out the same cannot have held a name twice.
            if msgspec.json.encode(found) == text:
                return found
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass
    else:
        found = json.loads(text)
        if _written(found).encode() == text:
            return found
    return json.loads(text, object_pairs_hook=_unique)


_written = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def json_lines(file: Iterable[bytes], before: int = 0) -> Iterator[Line]:
    """Lines, of which so many came before. Raises Bad."""
    for number, text in enumerate(file, before + 1):
        try:
            found = parse(text.rstrip(b"\r\n"))
        except (ValueError, RecursionError) as error:
            raise Bad(f"line {number}", "changed", f"it is not JSON ({error})") from None
        if not isinstance(found, dict):
            raise Bad(f"line {number}", "changed", "it is no JSON object")
        yield found


class JsonFile:
    """An export in JSON lines. A place in it is a number of bytes, at which a line begins."""

    begin = 0

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def large(self) -> bool:
        """Whether several processes are worth their start."""
        with open(self.path, "rb") as file:
            return file.seek(0, os.SEEK_END) >= LARGE

    def parts(self) -> Iterator[tuple[int, int]]:
        """The places between which it can be read piece by piece."""
        with open(self.path, "rb") as file:
            size, start = file.seek(0, os.SEEK_END), self.begin
            while start < size:
                file.seek(min(start + PART, size))
                file.readline()
                end = file.tell()
                yield start, end
                start = end

    def lines(self, start: int, end: int | None = None, before: int = 0) -> Iterator[Line]:
        """The events between two places, `before` is how many come before. Raises Bad, OSError."""
        with open(self.path, "rb") as file:
            file.seek(start)
            if end is None:
                yield from self._read(file, before)
            else:
                with io.BytesIO(file.read(end - start)) as part:
                    yield from self._read(part, before)

    def _read(self, file: IO[bytes], before: int) -> Iterator[Line]:
        yield from json_lines(file, before)


class CsvFile(JsonFile):
    """An export in CSV, with a head."""

    begin = len(",".join(COLUMNS)) + 1

    def _read(self, file: IO[bytes], before: int) -> Iterator[Line]:
        with io.TextIOWrapper(file, "utf-8", newline="") as text:
            yield from csv_lines(text, before)


def csv_lines(file: Iterable[str], before: int = 0) -> Iterator[Line]:
    """The records after the head, of which so many came before. Raises Bad.

    Empty is null, an apostrophe keeps a text from being a formula, and some cells are JSON.
    """
    csv.field_size_limit(1 << 30)
    rows, number = csv.reader(file, strict=True), before
    try:
        for row in rows:
            number += 1
            if len(row) != len(COLUMNS):
                raise ValueError("it has another number of cells")
            line: Line = dict(zip(COLUMNS, row))  # noqa: B905
            line["version"] = parse(line["version"].encode())
            for name in TEXTS:
                line[name] = uncell(line[name]) or None
            line["proof"] = line["proof"] or None
            yield nested(line)
    except (csv.Error, ValueError, RecursionError) as error:
        raise Bad(f"record {number}", "changed", str(error)) from None


def nested(line: Line) -> Line:
    """A line whose nested fields are JSON; no proof is none. Raises ValueError."""
    for name in NESTED:
        line[name] = parse(line[name].encode())
    proof = line.pop("proof")
    if proof is not None:
        line["proof"] = parse(proof.encode())
    return line


def uncell(cell: str) -> str:
    """A cell as it was before an apostrophe kept it from being a formula. Raises ValueError without that."""
    if cell[:1] not in FORMULA:
        return cell
    if cell[0] != "'" or cell[1:2] not in FORMULA:
        raise ValueError("a cell begins with another sign than was written")
    return cell[1:]


class ParquetFile:
    """An export in Parquet. A place in it is a number of row groups."""

    begin = 0

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def large(self) -> bool:
        """As of JsonFile."""
        return self._groups() > 1

    def parts(self) -> Iterator[tuple[int, int]]:
        """As of JsonFile: its row groups."""
        for group in range(self._groups()):
            yield group, group + 1

    def _groups(self) -> int:
        with self._opened() as file:
            return int(file.num_row_groups)

    def lines(self, start: int, end: int | None = None, before: int = 0) -> Iterator[Line]:
        """As of JsonFile."""
        number = before
        with self._opened() as file:
            self._check(file)
            try:
                groups = range(start, file.num_row_groups if end is None else end)
                for batch in file.iter_batches(PARQUET_ROWS, row_groups=groups):
                    # A time as the number that it is: dates would take as long as all else.
                    given = batch.columns
                    given[AT] = given[AT].cast("int64")
                    columns = [column.to_pylist() for column in given]
                    columns[AT] = [*map(iso, columns[AT])]
                    for number, row in enumerate(zip(*columns), number + 1):  # noqa: B007, B020, B905
                        yield nested(dict(zip(COLUMNS, row)))  # noqa: B905
            except (*MANGLED, OSError) as error:
                raise Bad(f"row {number}", "changed", f"it cannot be read ({error})") from None

    def _opened(self) -> Any:
        try:
            from pyarrow import parquet
        except ImportError:
            raise Unreadable("to read Parquet, install the package pyarrow; or export JSON lines") from None
        try:
            return parquet.ParquetFile(self.path)
        except (*MANGLED, OSError) as error:
            raise Bad("row 0", "changed", f"it cannot be read ({error})") from None

    def _check(self, file: Any) -> None:
        """Rows alone are in it: by statistics, filters or an order, readers would skip some. Raises Bad."""
        import pyarrow as pa

        types = dict.fromkeys(COLUMNS, pa.string())
        types |= {"at": pa.timestamp("ms", "UTC"), "version": pa.int32()}
        if not file.schema_arrow.equals(pa.schema(list(types.items()))):
            raise Bad("schema", "changed", "its columns are not those of an export")
        # Two marks of four bytes, and the length of the index.
        used = file.metadata.serialized_size + 12
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            columns = [group.column(place) for place in range(len(COLUMNS))]
            if group.sorting_columns or any(one.is_stats_set or one.has_column_index for one in columns):
                raise Bad(f"row group {number}", "changed", "it has statistics, which no export has")
            used += sum(one.total_compressed_size for one in columns)
        with open(self.path, "rb") as raw:
            if raw.seek(0, os.SEEK_END) != used:
                raise Bad("file", "changed", "there is more in it than rows")


def opened(path: str) -> JsonFile | CsvFile | ParquetFile:
    """An export's file; its first bytes tell the form. Raises OSError, and Bad for another head."""
    with open(path, "rb") as file:
        start = file.read(CsvFile.begin)
    if start[:4] == b"PAR1":
        return ParquetFile(path)
    if start[:3] != b"id,":
        return JsonFile(path)
    if start != (",".join(COLUMNS) + "\n").encode():
        raise Bad("record 0", "changed", "its columns are not those of an export")
    return CsvFile(path)


# -- All cores ----------------------------------------------------------------------------------------------


Mark = tuple[tuple[int, int], str, str, str, int]
"""How far a stream is at a place: its last event, hash, hash before and id, and how many there are."""


class Part(NamedTuple):
    """What was found of a part of a file that is right by itself; of a stream its first event, and marks."""

    filtered: bool | None
    events: int
    uncompared: int
    streams: dict[str, tuple[tuple[int, int], str, list[Mark]]]


class Parted(Verifier):
    """Takes the lines of a part, without those before it: its streams go on from wherever they are met."""

    def __init__(self, digests: Digests, filtered: bool | None) -> None:
        super().__init__(digests, filtered=filtered)
        self._marks: dict[str, tuple[tuple[int, int], str, list[Mark]]] = {}

    def _begun(self, line: Line) -> Stream:
        state = Stream()
        state.head, state.raw = line["previous_hash"], commitment(line["previous_hash"])
        first = entry(line["id"].partition(":")[2])
        self._marks[line["stream"]] = (first, state.head, [])
        return state

    def _held(self, stream: str, state: Stream) -> None:
        """Remember how far it is where a digest ends, and after the newest."""
        marks, ends = self._marks[stream][2], self.digests.ends.get(stream)
        late = not ends or state.at > ends[-1].at
        if state.at in self.digests.places or (late and not state.unsigned):
            marks.append(state.mark())
        if late:
            state.unsigned = "so"

    def part(self) -> Part:
        """What was found."""
        for stream, state in self.streams.items():
            marks = self._marks[stream][2]
            if not marks or marks[-1][0] != state.at:
                marks.append(state.mark())
        return Part(self.filtered, self.events, self.uncompared, self._marks)


class Helper:
    """A process that looks at parts of a file: this script once more. Raises OSError, EOFError."""

    def __init__(self, path: str, digests: Digests, filtered: bool | None) -> None:
        # Isolated: else what lies beside this file would take the place of Python's own modules.
        command = [sys.executable, "-I", *(["-S"] if sys.flags.no_site else []), __file__, HELPER]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._send((path, digests.every, filtered))

    def ask(self, start: int, end: int) -> None:
        """For the part between two places."""
        self._send((start, end))

    def answer(self) -> Part | None:
        """The next one; None for a part that is not right."""
        found = marshal.load(self._process.stdout)  # type: ignore[arg-type]  # noqa: S302 - our own process
        return None if found is None else Part(*found)

    def end(self) -> None:
        """Whatever it does."""
        self._process.kill()
        self._process.communicate()

    def _send(self, message: Any) -> None:
        pipe: Any = self._process.stdin
        pipe.write(marshal.dumps(message))
        pipe.flush()


def _help() -> int:
    """What a helper does: parts that are asked for on stdin, one after another, until nobody asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What is read has no cycles.
    gc.disable()
    asked, answers = sys.stdin.buffer, sys.stdout.buffer
    path, every, filtered = marshal.load(asked)  # noqa: S302 - of the process that started this one
    file, digests = opened(path), Digests.checked(every)
    while True:
        try:
            start, end = marshal.load(asked)  # noqa: S302
        except EOFError:
            return 0
        verifier = Parted(digests, filtered)
        found: tuple[Any, ...] | None
        try:
            for line in file.lines(start, end):
                verifier.take(line)
            found = tuple(verifier.part())
        except Bad:
            found = None
        try:
            answers.write(marshal.dumps(found))
            answers.flush()
        except OSError:
            # Who asked is gone; so is whoever would read that this cannot be flushed.
            os._exit(1)


def _spread(
    verifier: Verifier,
    file: JsonFile | ParquetFile,
    processes: int,
    progress: Callable[[int], None],
) -> int:
    """Have a file looked at by several processes; the place up to which it is right, its end or before."""
    helpers: list[Helper] = []
    waiting: deque[tuple[Helper, int]] = deque()
    parts, done = file.parts(), file.begin

    def ask(helper: Helper) -> None:
        for start, end in itertools.islice(parts, 1):
            helper.ask(start, end)
            waiting.append((helper, end))

    try:
        while len(helpers) < processes:
            helpers.append(Helper(file.path, verifier.digests, verifier.filtered))
        for helper in helpers * 2:
            ask(helper)
        while waiting:
            helper, end = waiting.popleft()
            found = helper.answer()
            if found is None or not verifier.join(found):
                break
            done = end
            ask(helper)
            progress(verifier.events)
    except (EOFError, OSError, ValueError, TypeError):
        # A process that cannot be had, or died, is done without.
        pass
    finally:
        for helper in helpers:
            helper.end()
    return done


def cores() -> int:
    """How many this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def verify(
    path: str,
    digests: Iterable[Line],
    keys: list[bytes],
    *,
    filtered: bool | None = None,
    unsigned: bool = False,
    processes: int = 1,
    progress: Callable[[int], None] = lambda _: None,
) -> Line:
    """Verify the file and report. Raises Bad, OSError, Unreadable.

    `processes`: so many at a time where the file is large, 0 for all cores. They only hurry: what one of them
    finds wrong is looked at again here, in order, so that the first such event is named.
    """
    verifier = Verifier(Digests(digests, keys), filtered=filtered, unsigned=unsigned)
    file = opened(path)
    processes = min(processes or (cores() if file.large else 1), MOST_PROCESSES)
    done = file.begin if processes == 1 else _spread(verifier, file, processes, progress)
    for line in file.lines(done, before=verifier.events):
        verifier.take(line)
        if verifier.events % PROGRESS == 0:
            progress(verifier.events)
    verifier.finish()
    return verifier.report()


def main(arguments: list[str] | None = None) -> int:
    """The script; its exit code."""
    if (sys.argv[1:] if arguments is None else arguments) == [HELPER]:
        return _help()
    parser = argparse.ArgumentParser(description="Verify an export of the broker's history, offline.")
    parser.add_argument("file", help="the export: JSON lines, CSV or Parquet")
    parser.add_argument("--digests", metavar="FILE", help="the signed digests, JSON lines")
    parser.add_argument(
        "--key", metavar="FILE", action="append", default=[], help="the public key, PEM or hex"
    )
    parser.add_argument("--filtered", action="store_true", default=None, help="it holds a selection only")
    parser.add_argument("--unsigned", action="store_true", help="allow events after the newest digest")
    parser.add_argument("--processes", type=int, default=0, metavar="N", help="default: one a core")
    given = parser.parse_args(arguments)
    try:
        keys = []
        for path in given.key:
            with open(path, encoding="ascii") as file:
                keys.append(public_key(file.read()))
        digests: list[Line] = []
        if given.digests:
            with open(given.digests, "rb") as file:
                digests = list(json_lines(file))
        report = verify(
            given.file,
            digests,
            keys,
            filtered=given.filtered,
            unsigned=given.unsigned,
            processes=max(0, given.processes),
        )
    except Bad as bad:
        sys.stdout.write(f"NOT RIGHT  {bad}\n")
        return 1
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2
    told = "complete" if report["complete"] else "filtered"
    sys.stdout.write(f"right      {report['events']} events, {told}, {report['digests']} digests\n")
    for note in report["notes"]:
        sys.stdout.write(f"note       {note}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
