"""The commands of the README and of the pages under docs/ do what they are said to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import docs
from support.system import System

# Shown at work by the other tests of this directory; here they would end the system or start a second one.
ELSEWHERE = ("up", "down", "test")
# These need something of their own before them, or a confirmation: which tests show them at work.
PREPARED = {
    ("client", "erase"): "system/test_readme.py",
    ("cert", "issue", "shop"): "system/test_readme.py",
    ("events", "verify", "history.jsonl"): "cli/test_export.py",
    ("events", "proof"): "cli/test_export.py",
    ("events", "verifier"): "cli/test_export.py",
    ("export", "-o", "history.jsonl", "--resume"): "cli/test_export.py",
    ("archive", "verify"): "archive/test_cli.py",
    ("backup",): "backup/test_cli.py",
    ("streams", "repair"): "repair/test_system.py",
    ("projection", "rebuild", "--all", "--archive-only"): "system/test_disaster.py",
}


def prepared(words: list[str]) -> str | None:
    """The tests that show a command which needs something before it."""
    return next((shown for known, shown in PREPARED.items() if tuple(words[: len(known)]) == known), None)


COMMANDS = sorted(
    {
        (page.name, tuple(words))
        for page in (docs.ROOT / "README.md", *(docs.ROOT / "docs").rglob("*.md"))
        for line in docs.shell_lines(page)
        if (words := docs.broker_words(line)) and words[0] not in ELSEWHERE and not prepared(words)
    }
)


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=lambda value: " ".join(value) if value else "")
def test_a_documented_command_works(
    shared_system: System, tmp_path: Path, page: str, words: tuple[str, ...]
) -> None:
    """On a running system it exits 0, says something, and nothing goes wrong."""
    done = shared_system.run(*words, cwd=tmp_path)
    assert done.returncode == 0, f"{page}: {done.stdout}{done.stderr}"
    assert done.stdout.strip()
    assert "Traceback" not in done.stderr


def test_a_client_comes_and_goes(shared_system: System) -> None:
    """Registered, given a certificate, and erased for good once that was confirmed."""
    # The producers' guide may have made it already.
    shared_system.run("client", "register", "shop")
    assert shared_system.run("cert", "issue", "shop").returncode == 0
    erase = ("client", "erase", "shop", "--reason", "the contract ended")
    refused = shared_system.run(*erase, input="n\n")
    assert refused.returncode != 0
    done = shared_system.run(*erase, input="y\n")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    again = shared_system.run("cert", "issue", "shop")
    assert again.returncode == 1
    assert "There is no client shop" in again.stderr


@pytest.mark.parametrize(("words", "shown"), PREPARED.items(), ids=str)
def test_the_others_are_shown_where_it_is_said(words: tuple[str, ...], shown: str) -> None:
    """The tests named for a command that needs something before it do run that command."""
    text = (docs.ROOT / "tests" / shown).read_text("utf-8")
    assert all(f'"{word}"' in text for word in words if word.isalpha() and word != "shop"), (words, shown)


def test_the_readme_s_commands_are_among_them() -> None:
    """So that a change of its form cannot leave them untested."""
    tested = {" ".join(words) for page, words in COMMANDS if page == "README.md"}
    assert {"demo", "status", "events tail", "projection lag"} <= tested
    assert any(words.startswith("send --from") for words in tested)


def test_what_the_readme_names_is_there(shared_system: System) -> None:
    """Its table of places: data, logs, the admin's password, certificates."""
    for path in ("log/gateway.log", "admin-password", "certs/ca.crt", "certs/clients/demo/client.key"):
        assert Path(shared_system.data / path).is_file()
