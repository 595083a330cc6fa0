"""How `demo` shows its messages: a table that lives while they move, and where to look afterwards."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from broker import clock
from broker.settings import Settings


@dataclass(slots=True)
class Shown:
    """A message of the demo; `status` is the gateway's last answer about it."""

    client: str
    route: str
    story: str
    message_id: str
    status: dict[str, Any] = field(default_factory=dict)


def settled(message: Shown, *, full: bool) -> bool:
    """Whether the demo has seen enough of it: its outcome, or (not `full`) that a retry is scheduled."""
    status = message.status
    if status["status"] != "queued" or status["parked"]:
        # The outcome is known before the read model shows the attempts.
        return bool(status["history_complete"])
    return not full and bool(status["next_retry_at"]) and bool(status["history_complete"])


def timeline(status: dict[str, Any]) -> list[str]:
    """What happened, each with the milliseconds since the submit."""
    began = clock.parse_iso(status["queued_at"])

    def since(moment: str) -> str:
        ms = max(0, clock.parse_iso(moment) - began)
        return f"+{ms} ms" if ms < 10_000 else f"+{ms / 1000:.1f} s"

    lines = ["accepted, durable"]
    for attempt in status["attempts"]:
        code = f" {attempt['code']}" if attempt["code"] else ""
        outcome = f"{attempt['outcome']}{code}"
        error = f" ({attempt['error']})" if attempt["error"] else ""
        lines.append(f"{since(attempt['at'])} attempt {attempt['attempt']}: {outcome}{error}")
    if status["next_retry_at"]:
        wait = max(0.0, (clock.parse_iso(status["next_retry_at"]) - clock.now_ms()) / 1000)
        lines.append(f"next attempt at {status['next_retry_at'][11:19]} UTC, in {wait:.0f} s")
    if status["failed_at"]:
        lines.append(f"{since(status['failed_at'])} failed: {status['reason'] or 'for good'}")
    return lines


@contextmanager
def display(messages: list[Shown], *, quiet: bool) -> Iterator[Callable[[], None]]:
    """A live table on a terminal, one printed at the end elsewhere; call what it gives after each change."""
    if quiet:
        yield lambda: None
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    if not console.is_terminal:
        yield lambda: None
        console.print(_table(messages))
        return
    with Live(_table(messages), console=console, refresh_per_second=8) as live:
        yield lambda: live.update(_table(messages))


def _table(messages: list[Shown]) -> Any:
    from rich.table import Table
    from rich.text import Text

    colours = {"delivered": "green", "failed": "red"}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0))
    for name in ("client", "route", "status", "what happened"):
        table.add_column(name)
    for message in messages:
        status = message.status
        word = status["status"] if status else "…"
        if status and status["next_retry_at"]:
            word = "waits for retry"
        table.add_row(
            Text(f"{message.client}\n{message.story}"),
            Text(message.route),
            Text(word, style=colours.get(word, "yellow")),
            Text("\n".join([message.message_id, *(timeline(status) if status else [])])),
        )
    return table


def conclude(settings: Settings, url: str, messages: list[Shown]) -> None:
    """The schedule of what is still to come, and where to look."""
    for message in messages:
        if message.status["next_retry_at"]:
            click.echo(
                f"{message.client}: a failed attempt is followed by another {schedule(settings)}, up to "
                f"{settings.max_attempts} in all. `broker demo --full` waits for it."
            )
    first = messages[0]
    folder = settings.certs_dir / "clients" / first.client
    data = "" if settings.data_dir == Path("var") else f" --data {shlex.quote(str(settings.data_dir))}"
    pem = (settings.certs_dir / "ca.crt", folder / "client.crt", folder / "client.key")
    curl = "curl --cacert {} --cert {} --key {}".format(*(shlex.quote(str(path)) for path in pem))
    program = shlex.quote(os.environ.get("BROKER_PROGRAM", "broker"))
    click.echo("\nLook for yourself:")
    for title, line in (
        ("every event of a message", f"{program} events show {messages[1].message_id}{data}"),
        ("the history as it grows", f"{program} events tail --follow{data}"),
        ("the log", f"{program} streams info{data}"),
        ("the read models", f"{program} projection lag{data}"),
        ("the gateway's answer", f"{curl} {url}/api/v1/messages/{first.message_id}"),
        ("the tables", _sql(settings, messages)),
    ):
        click.echo(f"  {click.style(title, bold=True)}\n    {line}")


def schedule(settings: Settings) -> str:
    """When retries come, in words."""
    if settings.retry_schedule == "fixed":
        return f"after {settings.retry_interval:g} s"
    return (
        f"after {settings.retry_interval:g} s, each wait {settings.retry_factor:g} times the last, "
        f"at most {settings.retry_max_interval:g} s"
    )


def _sql(settings: Settings, messages: list[Shown]) -> str:
    """A statement, with the client's command line where the database is the embedded one."""
    ids = ", ".join(f"'{message.message_id}'" for message in messages)
    statement = (
        f"SELECT message_id, client_id, status, attempt_count FROM messages WHERE message_id IN ({ids})"  # noqa: S608 - shown, not run
    )
    password = settings.data_dir / "mariadb" / "password"
    if not password.exists():
        return f"{statement};"
    from broker.projections import address

    where = address.parse(settings.mysql_url or "")
    target = f"--port={where.port} --host={where.host}"
    if where.unix_socket:
        target = f"--socket={shlex.quote(where.unix_socket)}"
    return (
        f"mariadb --no-defaults {target} --user={where.user} "
        f'--password="$(cat {shlex.quote(str(password))})" '
        f'{where.database} -e "{statement}"'
    )
