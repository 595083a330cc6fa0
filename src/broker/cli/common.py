"""What commands share: settings with `--data`, paths of the caller, output as JSON or for people."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from broker.cli import user_path
from broker.settings import Settings, load


class UserPath(click.Path):
    """A path on the command line, relative to the directory from which the user called."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Anchor, then check as click does."""
        return super().convert(user_path(str(value)), param, ctx)


def settings_for(data: Path | None = None, **overrides: Any) -> Settings:
    """The effective settings. A given data directory keeps its certificates inside it, unless set otherwise.

    Raises SettingsError.
    """
    if data is not None:
        overrides = {"data_dir": data, "certs_dir": data / "certs"} | overrides
    return load(**overrides)


data_option = click.option(
    "--data",
    type=UserPath(file_okay=False),
    help="The data directory. Default: the setting data_dir (var).",
)


def with_settings(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--data DIR` and pass it `settings` as the first argument."""

    @data_option
    @functools.wraps(function)
    def command(*args: Any, data: Path | None, **options: Any) -> Any:
        return function(settings_for(data), *args, **options)

    return command


yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


def confirm(question: str, *, yes: bool) -> None:
    """Ask unless `yes`; ends the command with exit code 1 where the answer is no, or nobody gives one."""
    try:
        agreed = yes or click.confirm(question)
    except click.Abort:
        agreed = False
    if not agreed:
        raise click.ClickException("Nothing was changed; --yes goes on without asking.")


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(value: object) -> None:
    """Indented JSON on stdout."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
