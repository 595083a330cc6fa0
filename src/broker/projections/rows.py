"""Rows gathered in memory while a batch is folded, for tables with few writes and many kinds of change."""

from __future__ import annotations

from collections.abc import Mapping

from broker.projections import sql
from broker.projections.sql import Write


class Rows:
    """Whole rows and partial changes of one table; everything is a literal, the last value of a column wins.

    `key` is the table's key column; `fillers` as in `sql.Update`.
    """

    def __init__(self, table: str, key: str, fillers: Mapping[str, str]) -> None:
        self._table = table
        self._key = key
        self._fillers = fillers
        self._whole: dict[str, dict[str, str]] = {}
        self._partial: dict[str, dict[str, str]] = {}

    def put(self, key: str, values: Mapping[str, str]) -> None:
        """The row of `key` is `values` now, whatever it was: all columns must be named."""
        self._partial.pop(key, None)
        self._whole[key] = dict(values)

    def change(self, key: str, values: Mapping[str, str]) -> None:
        """Set some columns of a row that exists."""
        row = self._whole.get(key)
        if row is None:
            row = self._partial.setdefault(key, {})
        row.update(values)

    def writes(self) -> list[Write]:
        """One statement for each set of columns."""
        found: list[Write] = []
        for whole, rows in ((True, self._whole), (False, self._partial)):
            shapes: dict[tuple[str, ...], list[str]] = {}
            for key, row in rows.items():
                names = tuple(sorted(row))
                values = ",".join([sql.text(key), *(row[name] for name in names)])
                shapes.setdefault(names, []).append(f"({values})")
            for names, lines in shapes.items():
                columns = (self._key, *names)
                if whole:
                    found.append(sql.Upsert(self._table, columns, lines))
                else:
                    fillers = [pair for pair in self._fillers.items() if pair[0] not in names]
                    found.append(sql.Update(self._table, columns, lines, fillers))
        return found


def marks(ms: int, seq: int) -> dict[str, str]:
    """The columns that say which event changed a row last."""
    return {"changed_ms": str(ms), "changed_seq": str(seq)}
