"""The documentation as data: its pages, the commands in it, and the commands that the program's own texts name."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click

from broker.cli import cli

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").glob("*.md")], key=str)


def shell_lines(page: Path) -> Iterator[list[str]]:
    """The words of every command in the page's `sh` blocks; comments and continuations are sh's."""
    for block in re.findall(r"^ *```sh\n(.*?)^ *```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def broker_words(words: list[str]) -> list[str] | None:
    """What follows `./broker` or `broker`, after variables and up to a redirection; None for another's command."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if ">" in words:
        words = words[: words.index(">")]
    return words[1:] if words and words[0] in ("./broker", "broker") else None


def quoted_commands(text: str) -> Iterator[list[str]]:
    """Commands between backticks, in a page or a program's text."""
    for quoted in re.findall(r"`((?:[A-Z_]+=\S+ )?(?:\./)?broker [^`\n]+)`", text):
        if (words := broker_words(quoted.split())) is not None:
            yield words


def problem(words: list[str]) -> str | None:
    """Why `broker` would not know these words: a command or an option that does not exist."""
    command: click.Command = cli
    context = click.Context(cli, info_name="broker")
    for word in words:
        if word == "--":
            break
        if word.startswith("-"):
            option = word.partition("=")[0]
            known = {name for one in command.get_params(context) for name in (*one.opts, *one.secondary_opts)}
            if option not in known:
                return f"{context.command_path} has no option {option}"
        elif isinstance(command, click.Group):
            found = command.get_command(context, word.rstrip(".,:;"))
            if found is None:
                return f"{context.command_path} has no command {word!r}"
            command, context = found, click.Context(found, info_name=found.name, parent=context)
    return None


def metric_rows() -> dict[str, tuple[str, set[str]]]:
    """Type and labels of each metric on the page of metrics."""
    page = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    rows = re.findall(r"^\| `(broker_\w+)` \| (\w+) \| ([^|]*) \|", page, re.MULTILINE)
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
