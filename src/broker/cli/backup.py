"""`backup`: everything there is, in a directory that grows by what is new; verified; brought back."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from broker.cli import restoring
from broker.cli.backup_common import (
    given_passphrase,
    keys_option,
    known_passphrase,
    passphrase_option,
    progress,
    remember_verified,
    size,
    target_argument,
    trusted,
    verified,
)
from broker.cli.common import UserPath, json_option, print_json, with_settings
from broker.errors import NotFound
from broker.settings import Settings

if TYPE_CHECKING:
    from broker.events.backup.creating import Made
    from broker.events.backup.repository import Repository
    from broker.events.backup.verifying import Checked, Report


@click.group()
def backup() -> None:
    """Backups: history, open messages, keys, certificates, settings.

    \b
      broker backup create /mnt/backup
      broker backup verify /mnt/backup
      broker backup restore /mnt/backup --data DIR

    Keys are sealed under a passphrase. Tables are no part of it: a restore builds them from the history.
    """  # noqa: D301 - click's mark


backup.add_command(restoring.restore)


@backup.command()
@target_argument
@passphrase_option
@keys_option
@click.option(
    "--new-passphrase", is_flag=True, help="Seal the keys of all backups there anew, with this one."
)
@click.option("--keep", type=click.IntRange(1), metavar="N", help="Remove older backups but the last N.")
@click.option("--full", is_flag=True, help="Copy the whole archive again where files in TARGET are damaged.")
@json_option
@with_settings
def create(
    settings: Settings,
    target: Path,
    *,
    passphrase_file: Path | None,
    keys_in: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Make a backup in the directory TARGET while everything runs.

    It has every event that was appended before it began. What an earlier backup in TARGET has is not copied
    again. Files there are never changed, only added, but for the keys: each backup replaces them, so that
    keys that were destroyed are soon gone from all of them.
    """
    from broker.cli import opening
    from broker.errors import Conflict
    from broker.events.backup.repository import Repository

    if opening.for_inspection(settings):
        raise Conflict("This is a copy for inspection; its backups would pass for the system's own.")
    passphrase = known_passphrase(settings, passphrase_file, new=True)
    made = asyncio.run(_create(settings, Repository(target, keys_in), passphrase, **options))
    if as_json:
        print_json(_made(made, target))
        return
    click.echo(
        f"{made.snapshot.name}: {made.snapshot.events} events, {made.snapshot.open} open messages, "
        f"{size(made.written)} written to {target}."
    )
    for name in made.removed:
        click.echo(f"Removed {name}.")
    if not made.tidied:
        click.echo(f"Another backup in {target} is damaged; `broker backup verify` tells.")


@backup.command()
@target_argument
@click.option("--backup", "name", metavar="NAME", help="Only this one. Default: all, each file once.")
@passphrase_option
@keys_option
@click.option(
    "--key", "keys", multiple=True, type=UserPath(exists=True, dir_okay=False),
    help="The public key of digests, PEM; may be repeated. Default: digests.pub of this installation.",
)  # fmt: skip
@json_option
@with_settings
def verify(
    settings: Settings,
    target: Path,
    *,
    name: str | None,
    passphrase_file: Path | None,
    keys_in: Path | None,
    keys: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Read every file of the backups in TARGET and name each that is missing or was changed. Exits 1 then.

    Needs no log, no database. Who made the backups is proved by the public key or by the passphrase; with the
    passphrase the keys are opened, too. The installation that was backed up remembers that they are whole.
    """
    from broker.events.backup.repository import Repository

    repository = Repository(target, keys_in)
    passphrase = given_passphrase(settings, passphrase_file)
    report = verified(repository, name, passphrase, trusted(settings, keys, repository))
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(report) | {"ok": report.ok})
    else:
        _show(report, target)
    remember_verified(settings, repository, report)
    sys.exit(0 if report.ok else 1)


async def _create(settings: Settings, repository: Repository, passphrase: str, **options: Any) -> Made:
    from broker.cli import opening
    from broker.events.archive import storage
    from broker.events.backup.creating import Creation, Source
    from broker.events.digests_key import DigestKey

    signer = settings.data_dir / "keys" / "digest-key"
    if not signer.exists():
        raise NotFound(
            f"{signer} is missing: make backups where the projector runs, which has made that key."
        )
    async with opening.administration(settings) as tools:
        source = Source(
            tools.settings,
            tools.redis,
            tools.keys,
            tools.identity,
            storage.opened(settings),
            DigestKey.open(settings, tools.keyring),
        )
        with progress("events") as (advance, total):
            creation = Creation(
                source, repository, passphrase, actor=opening.ACTOR, on_events=advance, on_total=total
            )
            return await creation.run(**options)


def _made(made: Made, target: Path) -> dict[str, Any]:
    snapshot = made.snapshot
    return {
        "target": str(target),
        "name": snapshot.name,
        "began_at": snapshot.began_at,
        "finished_at": snapshot.finished_at,
        "events": snapshot.events,
        "open": snapshot.open,
        "positions": {stream: part.position for stream, part in snapshot.streams.items()},
        "written": made.written,
        "removed": made.removed,
        "tidied": made.tidied,
    }


def _show(report: Report, target: Path) -> None:
    for one in report.backups:
        _show_one(one)
    for problem in report.problems:
        click.echo(f"{click.style('damaged', fg='red')}: {problem}")
    for path in report.unlisted:
        click.echo(f"{click.style('foreign', fg='red')}: {path} belongs to no backup.")
    if report.interrupted:
        click.echo(f"Left by an interrupted backup, or of one under way: {len(report.interrupted)} files.")
    if not report.backups:
        click.echo(f"There is no backup in {target}.")
    elif not report.proved:
        click.echo("Whole by their own word: give --key or the passphrase to prove who signed them.")
    if report.opened:
        click.echo("The passphrase opens the keys.")
    elif not report.keys_listed:
        click.echo("The keys are of no backup here: only the passphrase tells whether they are whole.")


def _show_one(one: Checked) -> None:
    if not one.problems:
        click.echo(
            f"{one.name}: {click.style('whole', fg='green')}, {one.events} events, {one.open} open messages, "
            f"{size(one.bytes)}."
        )
        return
    click.echo(f"{one.name}: {click.style('damaged', fg='red')}")
    for problem in one.problems:
        click.echo(f"  {problem}")
