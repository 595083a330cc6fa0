"""The harness itself: which release it takes, from where, and what it says when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from broker.cli.test import test as command
from support import releases


def test_from_goes_with_the_suite() -> None:
    """Anywhere else it would be passed over in silence."""
    done = CliRunner().invoke(command, ["events", "--from", "v1.0.0"])
    assert done.exit_code == 2
    assert "--from goes with the suite `upgrade`" in done.output


def test_a_release_that_is_not_there(tmp_path: Path) -> None:
    """It is named."""
    with pytest.raises(AssertionError, match=r"--from v99\.0\.0"):
        releases.extract("v99.0.0", tmp_path / "source")


def test_a_tree_without_git_stands_for_its_own_past(tmp_path: Path, monkeypatch) -> None:
    """As from a source archive: a copy of what lies there, with all that roles need."""
    monkeypatch.setattr(releases, "git", lambda *_: None)
    assert releases.newest() == "HEAD"
    copy = releases.extract("HEAD", tmp_path / "source")
    assert (copy.root / "src" / "broker" / "events" / "scripts" / "append.lua").is_file()
    assert (copy.root / "migrations" / "env.py").is_file()
    assert copy.mentions("sender_number")
    assert not copy.mentions("no_such_word_anywhere")
