"""The command line: one module per command group, imported when its command is used."""

from __future__ import annotations

import errno
import os
import sys
from typing import NoReturn

import click

from broker.cli.registry import LazyGroup
from broker.errors import BrokerError, Conflict, NotFound, SettingsError, ValidationError

FAILED = 1
USAGE = 2
# What to do about a file that cannot be used.
REMEDIES = {
    errno.EACCES: " Run this as the user that owns it, or let this user in.",
    errno.EPERM: " Run this as the user that owns it, or let this user in.",
    errno.EROFS: " Choose a place that can be written to, with --data or data_dir (BROKER_DATA_DIR).",
    errno.ENOSPC: " Free some space.",
}


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="broker", prog_name="broker")
@click.option(
    "--config",
    type=click.Path(dir_okay=False),
    help="The settings file. Default: broker.toml.",
)
def cli(config: str | None) -> None:
    """An event-sourced message broker: mTLS in, durable delivery, read models, verifiable history.

    Start with `broker up`, which needs nothing installed and sets up what is missing.
    Exit codes: 0 ok, 1 failed, 2 wrong use or setting.
    """
    if config is not None:
        # Through the environment, so that processes started from here read the same file.
        os.environ["BROKER_CONFIG"] = str(user_path(config))


def user_path(path: str) -> str:
    """A path as the caller meant it: the launcher changes the directory before it starts us."""
    return os.path.abspath(os.path.join(os.environ.get("BROKER_CALLER_DIR", ""), path))  # noqa: PTH100, PTH118


def main() -> NoReturn:
    """Run the command line and exit. A failure is one clear line; BROKER_DEBUG adds the traceback."""
    try:
        code = cli.main(prog_name="broker", standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except SettingsError as error:
        _fail(error, USAGE)
    except BrokerError as error:
        _fail(error, FAILED)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone; nothing is left to tell it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except Exception as error:  # noqa: BLE001 - the last resort of the whole program
        _fail(error, FAILED)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(error: Exception, code: int) -> NoReturn:
    if os.environ.get("BROKER_DEBUG"):
        raise error
    click.echo(f"Error: {_text(error)}", err=True)
    sys.exit(code)


def _text(error: Exception) -> str:
    if isinstance(error, Conflict | NotFound | ValidationError) and error.detail:
        # What is particular says it all; "There is no such thing." before it helps nobody.
        return error.detail
    if isinstance(error, BrokerError):
        return str(error)
    if isinstance(error, OSError) and (error.filename is not None or error.errno in REMEDIES):
        where = "" if error.filename is None else f"{error.filename}: "
        return f"{where}{error.strerror}.{REMEDIES.get(error.errno or 0, '')}"
    return f"{type(error).__name__}: {error} (BROKER_DEBUG=1 shows where)"
