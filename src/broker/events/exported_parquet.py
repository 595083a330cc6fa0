"""An export as Parquet, for analysis: the columns of CSV, typed, in row groups. Needs the package pyarrow.

Rows are gathered until they fill a row group, so that memory stays flat however long the history is. There
are no statistics in it: a reader skips rows by them, and a verifier could not vouch for what it skips.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import pyarrow as pa
from pyarrow import parquet

from broker.events.exported import ProvedLine

ROWS: Final = 8192
"""In a row group: what is held in memory."""
SCHEMA: Final = pa.schema(
    [
        ("id", pa.string()),
        ("stream", pa.string()),
        ("type", pa.string()),
        ("version", pa.int32()),
        ("at", pa.timestamp("ms", "UTC")),
        ("actor", pa.string()),
        ("correlation_id", pa.string()),
        ("causation_id", pa.string()),
        ("subject", pa.string()),
        ("data", pa.string()),
        ("hash", pa.string()),
        ("previous_hash", pa.string()),
        ("stored", pa.string()),
        ("proof", pa.string()),
    ]
)
_REPEATED: Final = ["stream", "type", "actor"]
"""Columns of few values."""
_AT: Final = SCHEMA.get_field_index("at")
_dumps: Final = msgspec.json.Encoder().encode


class Parquet:
    """One Parquet file; `data`, `stored` and `proof` are JSON."""

    media_type = "application/vnd.apache.parquet"
    resumable = False

    def __init__(self) -> None:
        self._sink = _Sink()
        self._batches: list[Any] = []
        self._rows = 0
        self._writer = parquet.ParquetWriter(
            self._sink, SCHEMA, compression="zstd", use_dictionary=_REPEATED, write_statistics=False
        )

    def head(self) -> bytes:
        """As in Format."""
        return self._sink.taken()

    def encode(self, lines: Sequence[ProvedLine]) -> bytes:
        """As in Format; empty until a row group is full."""
        if lines:
            self._batches.append(_batch(lines))
            self._rows += len(lines)
        if self._rows >= ROWS:
            self._flush()
        return self._sink.taken()

    def end(self) -> bytes:
        """As in Format: the last rows and the index."""
        self._flush()
        self._writer.close()
        return self._sink.taken()

    def _flush(self) -> None:
        if self._batches:
            self._writer.write_table(pa.Table.from_batches(self._batches), row_group_size=2 * ROWS)
            self._batches, self._rows = [], 0


def _batch(lines: Sequence[ProvedLine]) -> Any:
    columns = [
        [line.id for line in lines],
        [line.stream for line in lines],
        [line.type for line in lines],
        [line.version for line in lines],
        [line.at for line in lines],
        [line.actor for line in lines],
        [line.correlation_id for line in lines],
        [line.causation_id for line in lines],
        [line.subject for line in lines],
        [_dumps(line.data) for line in lines],
        [line.hash for line in lines],
        [line.previous_hash for line in lines],
        [_dumps(line.stored) for line in lines],
        [None if line.proof is None else _dumps(line.proof) for line in lines],
    ]
    arrays = [
        pa.array(column, pa.string()).cast(field.type) if place == _AT else pa.array(column, field.type)
        for place, (column, field) in enumerate(zip(columns, SCHEMA, strict=True))
    ]
    return pa.record_batch(arrays, schema=SCHEMA)


class _Sink(io.RawIOBase):
    """Takes what the writer writes until somebody fetches it."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, content: Any) -> int:
        """Keep a copy."""
        part = bytes(content)
        self._parts.append(part)
        return len(part)

    def taken(self) -> bytes:
        """What was written since the last time."""
        parts, self._parts = self._parts, []
        return b"".join(parts)
