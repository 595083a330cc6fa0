"""What the commands of `backup` share: the passphrase, a verification, a bar."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from broker.cli.common import UserPath
from broker.errors import BrokerError
from broker.settings import Settings, variable

if TYPE_CHECKING:
    from broker.events.backup.repository import Repository
    from broker.events.backup.verifying import Report

PASSPHRASE: Final = variable("backup_passphrase")

passphrase_option = click.option(
    "--passphrase-file",
    type=UserPath(exists=True, dir_okay=False),
    help=f"What seals the keys, in a file. Default: {PASSPHRASE}, then the setting key_passphrase.",
)
target_argument = click.argument("target", type=UserPath(file_okay=False))
keys_option = click.option(
    "--keys-in",
    type=UserPath(file_okay=False),
    help="Where the sealed keys lie, apart from the rest. Default: in TARGET.",
)


def known_passphrase(settings: Settings, file: Path | None, *, new: bool = False) -> str:
    """The passphrase, asked for on a terminal. Raises UsageError."""
    if found := given_passphrase(settings, file):
        return found
    if not sys.stdin.isatty():
        raise click.UsageError(f"Keys are sealed: give --passphrase-file, or set {PASSPHRASE}.")
    return str(click.prompt("Passphrase of the backup", hide_input=True, confirmation_prompt=new))


def given_passphrase(settings: Settings, file: Path | None) -> str | None:
    """The passphrase in a file, in the environment, in the settings; None without any. Raises UsageError."""
    if file is None:
        return os.environ.get(PASSPHRASE) or settings.key_passphrase or None
    found = file.read_text("utf-8").strip("\r\n")
    if not found:
        raise click.UsageError(f"{file} is empty.")
    return found


def trusted(settings: Settings, keys: tuple[Path, ...], repository: Repository) -> set[str] | None:
    """Public keys in hex, those given or the installation's, if it is of the same log; None without any."""
    from broker.events import log_identity
    from broker.events.backup import bundle

    found = {key for path in keys for key in bundle.public_keys_in(path)}
    if keys and not found:
        raise click.UsageError(f"{keys[0]} holds no public key of digests.")
    if found:
        return found
    own, whose = log_identity.read_file(settings), repository.whose()
    if own is None or whose is None or own.log_id != whose.log_id:
        return None
    return bundle.public_keys(settings.certs_dir) or None


def verified(
    repository: Repository, name: str | None, passphrase: str | None, keys: set[str] | None
) -> Report:
    """What a verification of the directory finds."""
    from broker.events.backup.verifying import Verification

    names = None if name is None else [repository.chosen(name)]
    with progress("bytes") as (advance, _):
        return Verification(repository, keys, passphrase, advance).run(names)


def remember_verified(settings: Settings, repository: Repository, report: Report) -> None:
    """Let this installation know that its newest backup there is whole; says on stderr why where it does not.

    What was found must have been shown by then: the data directory, of which a verification needs nothing,
    may be damaged or another's.
    """
    if not (report.ok and report.proved):
        return
    try:
        problem = _unremembered(settings, repository, report)
    except OSError as error:
        problem = f"{error.filename} cannot be written ({error.strerror})."
    except BrokerError as error:
        problem = str(error)
    if problem:
        click.echo(f"Not remembered here, so that the metrics do not show it: {problem}", err=True)


def _unremembered(settings: Settings, repository: Repository, report: Report) -> str:
    """Remember it; else why not. Raises OSError, LogRefused, SettingsError, BackupDamaged."""
    from broker import clock
    from broker.events import log_identity
    from broker.events.backup import record
    from broker.events.backup.record import Remembered

    own, whose, names = log_identity.read_file(settings), repository.whose(), repository.names()
    if own is None or whose is None or own.log_id != whose.log_id:
        return f"{settings.data_dir} is not of the installation that was backed up."
    if names[-1] not in {one.name for one in report.backups}:
        return f"{names[-1]} is newer."
    found = Remembered(names[-1], str(repository.root.absolute()), clock.now_ms())
    record.remember(settings, verified=found)
    return ""


@contextmanager
def progress(what: str) -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """A bar on stderr where that is a terminal: what advances it, and what tells the total."""
    if not sys.stderr.isatty():
        yield lambda _: None, lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(what), BarColumn(), TextColumn("{task.completed:.0f}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield (lambda count: bar.advance(task, count)), (lambda total: bar.update(task, total=total))


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
