"""The difference between a read model and its rebuilt tables, row by row."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from broker.projections import sql
from broker.projections.base import Projection
from broker.projections.rebuild import shadow
from broker.projections.store import Transaction

EXAMPLES: Final = 10


class Difference(msgspec.Struct, frozen=True):
    """How the rebuilt table differs; the examples are keys of such rows, values joined by `|`."""

    table: str
    rows: int
    """Of the rebuilt table."""
    missing: int
    """Rows that only the rebuilt table has."""
    surplus: int
    """Rows that only the present table has."""
    changed: int
    """Rows with other values."""
    examples: list[str]
    present: bool = True
    """Whether there is a present table at all."""

    @property
    def equal(self) -> bool:
        """Whether the tables hold the same."""
        return self.present and not (self.missing or self.surplus or self.changed)


async def compare(session: Transaction, projection: Projection) -> list[Difference]:
    """One for each table of the projection, which must stand still meanwhile."""
    there = await shadow.existing(session, projection.tables)
    return [await _compare(session, table, present=table in there) for table in projection.tables]


async def _compare(session: Transaction, table: str, *, present: bool) -> Difference:
    built = f"{table}{shadow.NEXT}"
    rows = await _number(session, f"SELECT COUNT(*) FROM {built}")
    if not present:
        return Difference(table, rows, rows, 0, 0, [], present=False)
    keys, others = await _columns(session, built)
    same = " AND ".join(f"l.{name}<=>n.{name}" for name in others) or "TRUE"
    using = ",".join(keys)
    kinds = {
        "missing": f"FROM {built} n LEFT JOIN {table} l USING ({using}) WHERE l.{keys[0]} IS NULL",
        "surplus": f"FROM {table} n LEFT JOIN {built} l USING ({using}) WHERE l.{keys[0]} IS NULL",
        "changed": f"FROM {table} l JOIN {built} n USING ({using}) WHERE NOT ({same})",
    }
    counts = {kind: await _number(session, f"SELECT COUNT(*) {rest}") for kind, rest in kinds.items()}
    shown = "CONCAT_WS('|'," + ",".join(f"n.{name}" for name in keys) + ")"
    examples: list[str] = []
    for kind, rest in kinds.items():
        if counts[kind] and len(examples) < EXAMPLES:
            found = await session.rows(f"SELECT {shown} {rest} LIMIT {EXAMPLES - len(examples)}")
            examples += [f"{kind}: {row[0]}" for row in found]
    return Difference(table, rows, counts["missing"], counts["surplus"], counts["changed"], examples)


async def _columns(session: Transaction, table: str) -> tuple[list[str], list[str]]:
    """The key's columns and the others."""
    rows = await session.rows(
        "SELECT column_name,column_key FROM information_schema.columns "
        f"WHERE table_schema=DATABASE() AND table_name={sql.text(table)} ORDER BY ordinal_position"
    )
    keys = [str(name) for name, key in rows if str(key) == "PRI"]
    return keys, [str(name) for name, key in rows if str(key) != "PRI"]


async def _number(session: Transaction, statement: str) -> int:
    row: Any = (await session.rows(statement))[0]
    return int(row[0])
