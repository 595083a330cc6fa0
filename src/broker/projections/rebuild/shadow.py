"""Shadow tables: made from the documented schema, so that they can replace tables that are gone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from broker.projections import schema, sql
from broker.projections.sql import Write
from broker.projections.store import Transaction

NEXT: Final = "__next"
"""Ends the names of tables that are being filled."""
OLD: Final = "__old"
"""Ends the names of tables that were replaced, until they are dropped."""
TRIAL: Final = "__trial"
"""Ends the names of tables that a dry run fills to measure."""
_TABLE: Final = re.compile(r"^CREATE TABLE (\w+) \(.*?;$", re.MULTILINE | re.DOTALL)


async def create(session: Transaction, tables: Sequence[str], ending: str) -> None:
    """Make the tables empty, in place of any that a former run left."""
    await drop(session, tables, ending)
    text = (schema.folder() / "schema.sql").read_text("utf-8")
    definitions = {found[1]: found[0] for found in _TABLE.finditer(text)}
    for table in tables:
        statement = definitions[table].rstrip(";")
        await session.execute(
            statement.replace(f"CREATE TABLE {table} ", f"CREATE TABLE {table}{ending} ", 1)
        )


async def drop(session: Transaction, tables: Sequence[str], ending: str) -> None:
    """Remove the tables, if they are there."""
    await session.execute(f"DROP TABLE IF EXISTS {', '.join(f'{table}{ending}' for table in tables)}")


async def existing(session: Transaction, tables: Sequence[str], ending: str = "") -> set[str]:
    """Which of the tables exist, without the ending."""
    names = ",".join(sql.text(f"{table}{ending}") for table in tables)
    rows = await session.rows(
        "SELECT table_name FROM information_schema.tables "
        f"WHERE table_schema=DATABASE() AND table_name IN ({names})"
    )
    return {str(row[0]).removesuffix(ending) for row in rows}


def into(writes: Sequence[Write], ending: str) -> list[Write]:
    """The same rows, for the shadow tables."""
    return [msgspec.structs.replace(write, table=f"{write.table}{ending}") for write in writes]
