"""Which module holds which command. Only the module of the command that runs is imported."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import NamedTuple

import click


class Entry(NamedTuple):
    """`module` under broker.cli, the command object's name in it, and the line that `--help` shows."""

    module: str
    attribute: str
    help: str


COMMANDS: dict[str, Entry] = {
    "up": Entry("up", "up", "Set up what is missing and run everything."),
    "down": Entry("up", "down", "Stop what `up` runs."),
    "status": Entry("up", "status", "Each process, its health and lag."),
    "send": Entry("send", "send", "Submit messages over mTLS and follow them."),
    "demo": Entry("demo", "demo", "A short guided run on `up`."),
    "events": Entry("history", "events", "Read the history, and prove that nobody altered it."),
    "export": Entry("export", "export", "The history as a file that proves itself."),
    "streams": Entry("streams", "streams", "The log: what lies in Redis, and its repair."),
    "archive": Entry("archive", "archive", "The archive: how far it is, whether it is whole."),
    "projection": Entry("projection", "projection", "Read models: lag, list, rebuild, resume."),
    "user": Entry("admin", "user", "Users: create, list, role, clients, password, disable."),
    "client": Entry("admin", "client", "Producers: register, list, route, erase."),
    "cert": Entry("cert", "cert", "Certificates: issue, renew, revoke, list, crl."),
    "keys": Entry("keys", "keys", "Keys: list, rotate, remove."),
    "backup": Entry("backup", "backup", "Backups: create, verify, restore."),
    "gateway": Entry("roles", "gateway", "Run the gateway."),
    "server": Entry("roles", "server", "Run the server."),
    "portal": Entry("roles", "portal", "Run the portal."),
    "worker": Entry("roles", "worker", "Run a delivery worker."),
    "projector": Entry("roles", "projector", "Run the projector."),
    "prepare": Entry("prepare", "prepare", "Set up what roles need that you run yourself."),
    "preflight": Entry("preflight", "preflight", "Seven checks before going into production."),
    "smoke": Entry("smoke", "smoke", "Nine checks of a running installation."),
    "migrate": Entry("setup", "migrate", "Bring the database schema up to date."),
    "config": Entry("setup", "config", "The effective settings, secrets hidden."),
    "doctor": Entry("doctor", "doctor", "What is wrong and what to do."),
    "test": Entry("test", "test", "Lint, types and the test suites."),
    "bench": Entry("bench", "bench", "The benchmarks."),
    "report": Entry("report", "report", "The readiness report: DEPLOY or DO NOT DEPLOY."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported on use. A command whose module is not installed is not offered."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click calls it so
        """The commands in the registry's order."""
        here = Path(__file__).parent
        return [name for name, entry in COMMANDS.items() if (here / f"{entry.module}.py").exists()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        if cmd_name not in self.list_commands(ctx):
            return None
        entry = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(f"broker.cli.{entry.module}"), entry.attribute, None)
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing one of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].help) for name in self.list_commands(ctx)])
