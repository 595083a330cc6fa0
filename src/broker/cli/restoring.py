"""`backup restore`: an installation made of a backup, in an empty directory."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from broker.cli.backup_common import keys_option, known_passphrase, passphrase_option, target_argument
from broker.cli.common import confirm, data_option, json_option, print_json, settings_for

if TYPE_CHECKING:
    from broker.cli.reviving import Restored


@click.command()
@target_argument
@click.option("--backup", "name", metavar="NAME", help="Which one. Default: the newest.")
@passphrase_option
@keys_option
@click.option("--yes", is_flag=True, help="Do not ask, where no --data was given.")
@json_option
@data_option
def restore(
    target: Path,
    *,
    name: str | None,
    passphrase_file: Path | None,
    keys_in: Path | None,
    data: Path | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Make an installation of a backup in TARGET: log, open messages, keys, certificates and tables.

    \b
      broker backup restore /mnt/backup --data DIR
      broker up --inspect --data DIR     a drill: nothing is delivered
      broker up --data DIR

    Goes into an empty data directory, an empty Redis and an empty database only. The installation that was
    backed up must not run any more: both would deliver what was open. Interrupted, it goes on when it is run
    again. Everybody has to sign in again.
    """  # noqa: D301 - click's mark
    settings = settings_for(data)
    confirm(f"Restore into {settings.data_dir} and {settings.certs_dir}?", yes=yes or data is not None)
    from broker.cli import reviving
    from broker.events.backup.repository import Repository

    passphrase = known_passphrase(settings, passphrase_file)
    done = asyncio.run(
        reviving.restored(settings, Repository(target, keys_in), name, passphrase, _said(as_json))
    )
    if as_json:
        print_json(done)
    else:
        _show(done, data)
    sys.exit(1 if done.differences else 0)


def _said(as_json: bool) -> Callable[[str], None]:
    return (lambda _: None) if as_json else (lambda text: click.echo(text, err=True))


def _show(done: Restored, data: Path | None) -> None:
    click.echo(f"Restored {done.name} into {done.data_dir}: {done.events} events, {done.open} open messages.")
    for what, names in (
        ("Erased again", done.erased),
        ("Revoked again", done.revoked),
        ("Disabled again", done.disabled),
        ("No keys, so that their messages cannot be read", done.keys_lost),
    ):
        if names:
            click.echo(f"{what}: {', '.join(names)}.")
    for difference in done.differences:
        click.echo(f"{click.style('different', fg='red')}: {difference}.")
    where = "" if data is None else f" --data {data}"
    click.echo(f"Look at it, with nothing delivered or sent: broker up --inspect{where}")
    click.echo(f"Start it: broker up{where}")
