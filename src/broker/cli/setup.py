"""`config` and `migrate`: the effective settings, and the schema."""

from __future__ import annotations

import sys
from typing import Any

import click

from broker.cli.common import json_option, print_json, with_settings
from broker.settings import Settings, shown, takes, variable


@click.command()
@json_option
@with_settings
def config(settings: Settings, *, as_json: bool) -> None:
    """The effective settings, secrets hidden. `*` marks those that are not the default."""
    values = shown(settings)
    if as_json:
        print_json(values)
        return
    from rich.console import Console
    from rich.table import Table

    default = shown(Settings())
    table = Table("setting", "value", "takes", "variable", box=None, pad_edge=False)
    for name, value in values.items():
        mark = "" if value == default[name] else " *"
        table.add_row(name, f"{_plain(value)}{mark}", takes(name), variable(name))
    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200).print(table)


@click.command()
@with_settings
def migrate(settings: Settings) -> None:
    """Bring the database schema up to date. Safe to call again, and by several at once."""
    from broker.embedded.urls import resolve
    from broker.projections import schema

    url = str(resolve(settings).mysql_url)
    before, head = schema.revisions(url)
    schema.migrate(url)
    if before == head:
        click.echo(f"The schema is up to date (revision {head}).")
    else:
        click.echo(f"The schema is now at revision {head} (was: {before or 'empty'}).")


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "–" if value is None else str(value)
