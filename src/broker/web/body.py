"""Request bodies: bounded while they arrive, and JSON read strictly.

Strict means that two readers cannot see two documents: no duplicate keys, invalid UTF-8, byte order mark,
lone surrogates, NaN, or depth past a bound. RFC 8259 leaves these to each parser, RFC 7493 forbids them.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence
from itertools import islice
from typing import Any, Generic, TypeVar

import msgspec
from starlette.types import Receive, Scope

from broker.web.problems import ClientDisconnected, Detail, Problem

T = TypeVar("T")

JSON = "application/json"
NDJSON = "application/x-ndjson"
MAX_DEPTH = 32
MAX_DETAILS = 20
"""As many faults of a request are told; its sender chooses how many there are."""

# Unrolled: plain runs are eaten whole, escapes one by one.
_without_strings = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL).sub
# Each key ends in one of these; a text such as "at 14:00" has none.
_key_ends = re.compile(rb'"[ \t\r\n]*:').findall
_first_member = re.compile(
    rb'[ \t\r\n]*\{[ \t\r\n]*"[^"\\]*(?:\\.[^"\\]*)*"[ \t\r\n]*:[ \t\r\n]*', re.DOTALL
).match
_lines = re.compile(rb"[^ \t\r\n][^\n]*").finditer
_CHARSET = re.compile(r'\s*charset\s*=\s*"?utf-?8"?\s*', re.IGNORECASE)
_plain = msgspec.json.Decoder()
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_elements = msgspec.json.Decoder(list[msgspec.Raw])


def header(scope: Scope, name: bytes) -> bytes | None:
    """The last value of a header; names are lower case."""
    found = None
    for key, value in scope["headers"]:
        if key == name:
            found = value
    return found


def media_type(scope: Scope, allowed: Sequence[str]) -> str:
    """The request's media type, one of `allowed`. Raises Problem 415: another type, charset or coding."""
    raw = header(scope, b"content-type")
    if raw is not None:
        kind, _, parameters = raw.decode("latin-1").partition(";")
        kind = kind.strip().lower()
        charsets = [part for part in parameters.split(";") if part.strip().lower().startswith("charset")]
        if kind in allowed and all(_CHARSET.fullmatch(part) for part in charsets):
            coding = header(scope, b"content-encoding")
            if coding is None or coding.strip().lower() == b"identity":
                return kind
            raise Problem("unsupported_media_type", "A content encoding is not supported.")
    raise Problem("unsupported_media_type", f"The content type must be {' or '.join(allowed)}, in UTF-8.")


async def read(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body, at most `limit` bytes.

    Raises Problem 413 at the first sign that it is longer, ClientDisconnected when it does not arrive.
    """
    declared = header(scope, b"content-length")
    if declared is not None and int(declared) > limit:
        raise _too_large(limit)
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        whole: bytes = message.get("body", b"")
        if len(whole) > limit:
            raise _too_large(limit)
        return whole
    parts, size = [], 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)
        message = await receive()


def parse(raw: bytes) -> Any:
    """Strict JSON as plain values. Raises Problem 400 `malformed_json`."""
    value = _decode(_plain, raw)
    # Each member has a colon of its own: distinct keys <= members <= colons. Where the first equals the last,
    # no key was twice. Else a closer bound is tried, and then the colons inside strings are taken out, which
    # counts the members exactly: the document is valid JSON by now, so the expression finds just its strings.
    keys = _keys(value, 0)
    if (
        keys != raw.count(b":")
        and keys != len(_key_ends(raw))
        and keys != _without_strings(b"", raw).count(b":")
    ):
        raise _twice()
    return value


def elements(raw: bytes, name: str) -> list[msgspec.Raw]:
    """The elements of the array that is the only member, `name`, of an object; each is still to be parsed.

    Splitting costs a twentieth of parsing. Raises Problem 400.
    """
    members: dict[str, msgspec.Raw] = _decode(_members, raw, "")
    details = [] if name in members else [Detail(name, "is missing")]
    details += _unknown(members, {name})
    if details:
        raise invalid(details)
    value = members[name]
    # Of a key that comes twice the last value is given; then this is not all there is.
    first = _first_member(raw)
    if first is None or raw[first.end() + len(memoryview(value)) :].strip(b" \t\r\n") != b"}":
        raise _twice()
    found: list[msgspec.Raw] = _decode(_elements, value, name)
    return found


class Reader(Generic[T]):
    """Reads strict JSON of one type, a msgspec type such as a Struct with `forbid_unknown_fields`."""

    def __init__(self, type_: type[T]) -> None:
        self.type = type_
        self._decoder = msgspec.json.Decoder(type_)

    def decode(self, raw: bytes) -> T:
        """The value. Raises Problem 400: `malformed_json`, or `validation_error` naming every bad field."""
        value = parse(raw)
        try:
            return self._decoder.decode(raw)
        except msgspec.ValidationError as error:
            raise invalid(explain(value, self.type, error)) from None

    def convert(self, value: Any) -> T:
        """As `decode`, from plain values that `parse` gave. Raises Problem 400 `validation_error`."""
        try:
            return msgspec.convert(value, self.type)
        except msgspec.ValidationError as error:
            raise invalid(explain(value, self.type, error)) from None


def invalid(details: Sequence[Detail]) -> Problem:
    """A 400 `validation_error` with these details."""
    if len(details) > MAX_DETAILS:
        details = [*details[:MAX_DETAILS], Detail("", "and more")]
    text = "; ".join(
        f"{detail.field}: {detail.reason}" if detail.field else detail.reason for detail in details
    )
    return Problem("validation_error", text, details=details)


def explain(value: Any, type_: Any, error: msgspec.ValidationError) -> list[Detail]:
    """The decoder stops at the first fault; for an object each field is tried, so that all are named."""
    if not (isinstance(value, dict) and isinstance(type_, type) and issubclass(type_, msgspec.Struct)):
        return [_detail(str(error), "")]
    details, known = [], set()
    for field in msgspec.structs.fields(type_):
        known.add(field.encode_name)
        if field.encode_name in value:
            try:
                msgspec.convert(value[field.encode_name], field.type)
            except msgspec.ValidationError as fault:
                details.append(_detail(str(fault), field.encode_name))
        elif field.required:
            details.append(Detail(field.encode_name, "is missing"))
    if type_.__struct_config__.forbid_unknown_fields:
        details += _unknown(value, known)
    return details or [_detail(str(error), "")]


def split_ndjson(raw: bytes, limit: int) -> list[bytes]:
    """The lines of a newline-delimited body, blank ones left out. Raises Problem 400 past `limit` lines."""
    lines = [match.group() for match in islice(_lines(raw), limit + 1)]
    if len(lines) > limit:
        raise invalid([Detail("", f"takes at most {limit} lines")])
    return lines


def _decode(decoder: msgspec.json.Decoder[Any], raw: bytes | msgspec.Raw, under: str | None = None) -> Any:
    """With `under`, the field that is decoded, a value of another type is a `validation_error`."""
    try:
        return decoder.decode(raw)
    except RecursionError:
        raise _too_deep() from None
    except UnicodeDecodeError:
        raise Problem("malformed_json", "The body is not valid UTF-8.") from None
    except msgspec.DecodeError as error:
        if under is not None and isinstance(error, msgspec.ValidationError):
            raise invalid([_detail(str(error), under)]) from None
        raise Problem("malformed_json", f"{error}.") from None


def _keys(value: Any, depth: int) -> int:
    """The number of distinct keys, summed over all objects. Raises Problem past MAX_DEPTH."""
    if depth > MAX_DEPTH:
        raise _too_deep()
    if type(value) is dict:
        count = len(value)
        for inner in value.values():
            if type(inner) is dict or type(inner) is list:
                count += _keys(inner, depth + 1)
        return count
    if type(value) is list:
        count = 0
        for inner in value:
            if type(inner) is dict or type(inner) is list:
                count += _keys(inner, depth + 1)
        return count
    return 0


def _detail(text: str, under: str) -> Detail:
    """The decoder says "Expected … - at `$.a.b`"."""
    reason, _, where = text.partition(" - at `")
    path = where.rstrip("`").removeprefix("$").lstrip(".")
    if path.startswith("["):
        return Detail(f"{under}{path}", reason)
    return Detail(".".join(part for part in (under, path) if part), reason)


def _unknown(names: Iterable[str], known: Container[str]) -> list[Detail]:
    unknown = (name for name in names if name not in known)
    return [Detail(name[:64], "is not a known field") for name in islice(unknown, MAX_DETAILS + 1)]


def _twice() -> Problem:
    return Problem("malformed_json", "An object has the same key twice.")


def _too_deep() -> Problem:
    return Problem("malformed_json", f"The document is nested deeper than {MAX_DEPTH} levels.")


def _too_large(limit: int) -> Problem:
    return Problem("body_too_large", f"The body may have at most {limit} bytes.")
