"""docs/security.md: every defence names tests, and they are there."""

from __future__ import annotations

import re

import pytest

from support.docs import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[a-z_/0-9]+\.py)::(\w+)`", PAGE)))
# Rows of a table, but for its head and the line below it.
DEFENCES = [
    row
    for table in re.findall(r"^\| attack \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    for row in table.splitlines()
]


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_a_named_test_exists(path: str, name: str) -> None:
    """In that file, under that name."""
    assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("row", DEFENCES, ids=lambda row: row.split("|")[1].strip())
def test_a_defence_is_shown(row: str) -> None:
    """By a test at least; what looks like a test in the page is one."""
    attack, defence, shown = (cell.strip() for cell in row.strip("|").split("|"))
    assert attack
    assert defence
    assert re.fullmatch(r"`tests/\S+::\w+`(, `tests/\S+::\w+`)*", shown)


def test_there_are_defences() -> None:
    """The page was read as it is meant."""
    assert len(DEFENCES) > 40
    assert PAGE.count("::test_") == sum(row.count("::test_") for row in DEFENCES)
