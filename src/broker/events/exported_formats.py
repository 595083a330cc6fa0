"""The forms of an export: JSON lines, and CSV that no spreadsheet takes for formulas."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from broker.events.exported import ProvedLine

FORMATS: Final = ("jsonl", "csv")
COLUMNS: Final = (
    "id", "stream", "type", "version", "at", "actor", "correlation_id", "causation_id", "subject", "data",
    "hash", "previous_hash", "stored", "proof",
)  # fmt: skip
FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "'")
"""What a cell may not begin with: an apostrophe is put in front, and in front of an apostrophe too."""


class Format(Protocol):
    """Encodes lines; `media_type` of the whole."""

    media_type: str

    def head(self) -> bytes:
        """What comes before the first line."""
        ...

    def encode(self, lines: Sequence[ProvedLine]) -> bytes:
        """Lines as bytes, each ending with a line feed and holding no other."""
        ...


class JsonLines:
    """One JSON object a line."""

    media_type = "application/x-ndjson"

    def __init__(self) -> None:
        self._encode = msgspec.json.Encoder().encode_lines

    def head(self) -> bytes:
        """As in Format."""
        return b""

    def encode(self, lines: Sequence[ProvedLine]) -> bytes:
        """As in Format."""
        return self._encode(lines)


class Csv:
    """RFC 4180, UTF-8, with a header; what is null is empty, `data`, `stored` and `proof` are JSON."""

    media_type = "text/csv"

    def __init__(self) -> None:
        self._encode = msgspec.json.Encoder().encode

    def head(self) -> bytes:
        """As in Format."""
        return (",".join(COLUMNS) + "\n").encode()

    def encode(self, lines: Sequence[ProvedLine]) -> bytes:
        """As in Format."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(self._cells(line) for line in lines)
        return out.getvalue().encode()

    def _cells(self, line: ProvedLine) -> list[str]:
        data, stored = self._encode(line.data).decode(), self._encode(line.stored).decode()
        proof = "" if line.proof is None else self._encode(line.proof).decode()
        texts = (
            line.id, line.stream, line.type, str(line.version), line.at, line.actor, line.correlation_id,
            line.causation_id, line.subject, data, line.hash, line.previous_hash, stored, proof,
        )  # fmt: skip
        return [_cell(text or "") for text in texts]


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA) else text


def named(name: str) -> Format:
    """The format of this name, one of FORMATS."""
    return Csv() if name == "csv" else JsonLines()
