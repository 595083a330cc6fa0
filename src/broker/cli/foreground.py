"""`up` in a terminal: progress while it sets up, then what runs where, then the log."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

import click

from broker.embedded.logs import Logs
from broker.embedded.supervisor import Supervisor
from broker.settings import Settings


def run(settings: Settings, *, interactive: bool) -> int:
    """Run until a signal; the exit code. `interactive` follows the log, too. Raises BrokerError."""
    screen = Screen()
    logs = Logs(settings.data_dir / "log", screen.log if interactive else None)
    supervisor = Supervisor(settings, screen, logs)
    supervisor.ready = screen.ready
    try:
        asyncio.run(_run(supervisor))
    finally:
        screen.close()
        logs.close()
    return 0


async def _run(supervisor: Supervisor) -> None:
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGBREAK"):
        number = getattr(signal, name, None)
        if number is None:
            continue
        try:
            loop.add_signal_handler(number, on_signal)
        except NotImplementedError:  # Windows' event loops have no signal handlers of their own
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(on_signal))
    await supervisor.run(stop, hurry)


class Screen:
    """A spinner with the current step on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False, markup=False)
        self._status: Any = None
        self._step = ""
        self._following = False

    def step(self, text: str) -> None:
        """Show that `text` is being done; the step before it is done."""
        self._done()
        self._step = text
        if self._console.is_terminal:
            self._status = self._console.status(text)
            self._status.start()
        else:
            self._console.print(text)

    def line(self, text: str) -> None:
        self._console.print(f"  {text}")

    def ready(self, lines: list[str]) -> None:
        """Everything runs: say where, then follow the log."""
        self.close()
        for line in lines:
            click.echo(line)
        self._following = True
        if sys.stdout.isatty():
            click.echo("Running; Ctrl-C stops it.\n")

    def log(self, text: str) -> None:
        """A line of the log: all once everything runs, before that only what is wrong."""
        if not (self._following or " warning " in text or " error " in text):
            return
        if self._status is None:
            click.echo(text, err=True)
        else:
            from rich.text import Text

            # Above the spinner, not into its line.
            self._console.print(Text.from_ansi(text))

    def close(self) -> None:
        self._done()

    def _done(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
            self._console.print(f"✓ {self._step}")
