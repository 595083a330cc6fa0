"""`up`, `down`, `status`: everything on this machine, supervised."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from broker.cli.common import data_option, json_option, print_json, settings_for
from broker.settings import Settings


@click.command()
@click.option("--detach", is_flag=True, help="Return once everything runs; `broker down` stops it.")
@click.option("--workers", type=int, metavar="N", help="The setting workers.")
@click.option(
    "--gateways", type=int, metavar="N", help="The setting gateways: processes that share the port."
)
@click.option(
    "--inspect",
    is_flag=True,
    help="Only look at what is there, a restored backup for one: nothing is accepted, delivered or sent.",
)
@click.option("--detached", is_flag=True, hidden=True)
@data_option
def up(
    data: Path | None,
    workers: int | None,
    gateways: int | None,
    *,
    detach: bool,
    inspect: bool,
    detached: bool,
) -> None:
    """Set up what is missing and run everything; Ctrl-C stops it.

    Without addresses of servers of your own (BROKER_REDIS_URL, BROKER_MYSQL_URL) it starts a private Valkey
    and a private MariaDB in the data directory. It can be called again at any time.
    """
    settings = settings_for(data, workers=workers, gateways=gateways, inspection=inspect or None)
    if settings.inspection:
        _check_there(settings)
    if detach:
        from broker.embedded import detached as background

        background.start(settings, click.echo)
        return
    from broker.cli.foreground import run

    sys.exit(run(settings, interactive=not detached))


def _check_there(settings: Settings) -> None:
    """Raises NotFound where there is nothing to look at: `up` would make a new installation and show it."""
    from broker.errors import NotFound
    from broker.events import log_identity
    from broker.preparation import check_restored

    check_restored(settings)
    if not (path := log_identity.file_path(settings)).exists():
        raise NotFound(
            f"{settings.data_dir} holds no installation to look at ({path} is missing). Is it the right "
            "directory? `broker backup restore` makes one."
        )


@click.command()
@data_option
def down(data: Path | None) -> None:
    """Stop what `up` runs on the data directory, in order."""
    from broker.embedded import detached as background

    settings = settings_for(data)
    pid = background.stop(settings, lambda text: click.echo(text, err=True))
    click.echo("Stopped." if pid else f"Nothing runs on {settings.data_dir}.")


@click.command()
@json_option
@data_option
def status(data: Path | None, *, as_json: bool) -> None:
    """Each process, its health and lag. Exits 1 unless all run and are well."""
    settings = settings_for(data)
    found = describe(settings)
    if as_json:
        print_json(found)
    else:
        _show(found)
    sys.exit(0 if found["healthy"] else 1)


def describe(settings: Settings) -> dict[str, Any]:
    """What `status --json` prints; a process that is gone is shown so, whatever the file says."""
    import msgspec

    from broker.embedded.state import alive, read

    state = read(settings.data_dir)
    running = state is not None and alive(state.pid, state.created)
    members = []
    for member in state.members if state else []:
        if not running or (member.pid is not None and not alive(member.pid, member.created)):
            member.state, member.health = ("waiting" if running else "stopped"), "unknown"
            member.pid = member.created = None
        members.append(msgspec.to_builtins(member))
    phase = state.phase if state else "stopped"
    if state and not running and phase not in ("stopped", "failed"):
        phase = "stopped"
    return {
        "running": running,
        "healthy": running and phase == "running" and all(one["health"] == "ok" for one in members),
        "phase": phase,
        "inspection": running and state is not None and state.inspection,
        "pid": state.pid if state and running else None,
        "data_dir": str(settings.data_dir.absolute()),
        "error": state.error if state else "",
        "processes": members,
    }


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    # Into a file or a pipe whole lines go, however long.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    if not found["processes"]:
        console.print(f"Nothing runs on {found['data_dir']}. Start it with `broker up`.", markup=False)
        return
    table = Table("process", "pid", "state", "health", "restarts", "lag", "at", "detail", box=None)
    colours = {"ok": "green", "failing": "red"}
    for one in found["processes"]:
        colour = colours.get(one["health"], "yellow")
        table.add_row(
            one["name"],
            str(one["pid"] or "–"),
            one["state"],
            f"[{colour}]{one['health']}[/]",
            str(one["restarts"]),
            _lag(one),
            one["url"] or "",
            (one["detail"].splitlines() or [""])[0].replace("[", "\\["),
        )
    console.print(table)
    who = f"PID {found['pid']}" if found["running"] else "not running"
    console.print(f"{found['phase']} ({who}) on {found['data_dir']}", markup=False)
    if found["inspection"]:
        from broker.embedded.summary import INSPECTION

        console.print(INSPECTION, markup=False)
    if found["error"]:
        console.print(f"Last error: {found['error']}", markup=False)


def _lag(member: dict[str, Any]) -> str:
    events, seconds = member["lag_events"], member["lag_seconds"]
    parts = [
        f"{events:.0f} events" if events is not None else "",
        f"{seconds:.1f} s" if seconds is not None else "",
    ]
    return ", ".join(part for part in parts if part)
