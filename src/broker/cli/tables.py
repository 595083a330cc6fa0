"""Tables for people."""

from __future__ import annotations

from collections.abc import Collection, Sequence

WIDTH = 400
"""Wider than any row: ids are there to be copied, so that a narrow terminal wraps them and cuts nothing."""


def show(names: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str] = ()) -> None:
    """Print rows under their names, numbers (`right`) to the right. Cells may carry ANSI colours."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text.from_ansi(cell) for cell in row))
    Console(width=WIDTH, highlight=False).print(table)
