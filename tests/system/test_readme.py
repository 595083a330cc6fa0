"""The commands of the README and of the pages under docs/ do what they are said to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import docs
from support.system import System

# Shown at work by the other tests of this directory; here they would end the system or start a second one.
ELSEWHERE = ("up", "down", "test")
COMMANDS = sorted(
    {
        (page.name, tuple(words))
        for page in (docs.ROOT / "README.md", *(docs.ROOT / "docs").rglob("*.md"))
        for line in docs.shell_lines(page)
        if (words := docs.broker_words(line)) and words[0] not in ELSEWHERE
    }
)


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=lambda value: " ".join(value) if value else "")
def test_a_documented_command_works(shared_system: System, page: str, words: tuple[str, ...]) -> None:
    """On a running system it exits 0, says something, and nothing goes wrong."""
    done = shared_system.run(*words)
    assert done.returncode == 0, f"{page}: {done.stdout}{done.stderr}"
    assert done.stdout.strip()
    assert "Traceback" not in done.stderr


def test_the_readme_s_commands_are_among_them() -> None:
    """So that a change of its form cannot leave them untested."""
    tested = {" ".join(words) for page, words in COMMANDS if page == "README.md"}
    assert {"demo", "status", "events tail", "projection lag"} <= tested
    assert any(words.startswith("send --from") for words in tested)


def test_what_the_readme_names_is_there(shared_system: System) -> None:
    """Its table of places: data, logs, the admin's password, certificates."""
    for path in ("log/gateway.log", "admin-password", "certs/ca.crt", "certs/clients/demo/client.key"):
        assert Path(shared_system.data / path).is_file()
