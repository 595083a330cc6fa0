"""The forms of an export: JSON lines, CSV that no spreadsheet takes for formulas, Parquet for analysis."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, Protocol

import msgspec

from broker.errors import ValidationError
from broker.events.exported import ProvedLine

FORMATS: Final = ("jsonl", "csv", "parquet")
COLUMNS: Final = (
    "id", "stream", "type", "version", "at", "actor", "correlation_id", "causation_id", "subject", "data",
    "hash", "previous_hash", "stored", "proof",
)  # fmt: skip
FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "'")
"""What a cell may not begin with: an apostrophe is put in front, and in front of an apostrophe too."""

_dumps: Final = msgspec.json.Encoder().encode
_quoted: Final = re.compile(r'[",\r\n]').search


class Format(Protocol):
    """Encodes one export, line after line."""

    media_type: str
    resumable: bool
    """Whether an export that was cut off after a line can be gone on with from there."""

    def head(self) -> bytes:
        """What comes before the first line."""
        ...

    def encode(self, lines: Sequence[ProvedLine]) -> bytes:
        """Lines as bytes, each ending with a line feed and holding no other where the form is resumable."""
        ...

    def end(self) -> bytes:
        """What comes after the last line."""
        ...


class JsonLines:
    """One JSON object a line."""

    media_type = "application/x-ndjson"
    resumable = True

    def __init__(self) -> None:
        self._encode = msgspec.json.Encoder().encode_lines

    def head(self) -> bytes:
        """As in Format."""
        return b""

    def encode(self, lines: Sequence[ProvedLine]) -> bytes:
        """As in Format."""
        return self._encode(lines)

    def end(self) -> bytes:
        """As in Format."""
        return b""


class Csv:
    """RFC 4180, UTF-8, with a header; what is null is empty, `data`, `stored` and `proof` are JSON."""

    media_type = "text/csv"
    resumable = True

    def head(self) -> bytes:
        """As in Format."""
        return (",".join(COLUMNS) + "\n").encode()

    def encode(self, lines: Sequence[ProvedLine]) -> bytes:
        """As in Format."""
        return "".join(map(_record, lines)).encode()

    def end(self) -> bytes:
        """As in Format."""
        return b""


def _record(line: ProvedLine) -> str:
    # By hand, as this is what an export's time goes to: ids, times and hashes need no quotes, JSON always.
    proof = "" if line.proof is None else f'"{_json(line.proof)}"'
    return (
        f"{line.id},{line.stream},{_common(line.type)},{line.version},{line.at},{_common(line.actor)},"
        f"{_cell(line.correlation_id)},{_cell(line.causation_id)},{_cell(line.subject)},"
        f'"{_json(line.data)}",{line.hash},{line.previous_hash},"{_json(line.stored)}",{proof}\n'
    )


def _json(value: object) -> str:
    return _dumps(value).decode().replace('"', '""')


def _cell(text: str | None) -> str:
    if not text:
        return ""
    if text.startswith(FORMULA):
        text = f"'{text}"
    return '"' + text.replace('"', '""') + '"' if _quoted(text) else text


_common: Final = lru_cache(maxsize=1024)(_cell)
"""Of texts that many events share."""


def named(name: str) -> Format:
    """The format of this name, one of FORMATS. Raises ValidationError where its package is not installed."""
    if name == "parquet":
        try:
            from broker.events.exported_parquet import Parquet
        except ImportError:
            raise ValidationError(
                "format", "parquet needs the package pyarrow, which is not installed here (broker[parquet])"
            ) from None
        return Parquet()
    return Csv() if name == "csv" else JsonLines()


def check_resumable(form: Format, name: str) -> None:
    """Raises ValidationError for a form that only begins at the beginning."""
    if not form.resumable:
        raise ValidationError("format", f"{name} has its index at its end and cannot go on: export it anew")
