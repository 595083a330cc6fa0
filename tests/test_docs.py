"""What the documentation and the program's own texts name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from broker.cli import settings_page
from broker.settings import RESERVED, Settings, shown, variable
from support import docs

SOURCES = sorted((docs.ROOT / "src").rglob("*.py"))
NAMES = set(shown(Settings()))


def named(path: Path) -> str:
    return str(path.relative_to(docs.ROOT))


@pytest.mark.parametrize("page", docs.PAGES, ids=named)
def test_commands_of_the_pages_exist(page: Path) -> None:
    """Every `./broker …`, in a block or between backticks, with its options."""
    found = [words for line in docs.shell_lines(page) if (words := docs.broker_words(line)) is not None]
    found += docs.quoted_commands(page.read_text("utf-8"))
    assert [told for words in found if (told := docs.problem(words))] == []


def test_commands_of_the_program_s_texts_exist() -> None:
    """An error never sends anybody to a command that is not there."""
    told = {}
    for path in SOURCES:
        for words in docs.quoted_commands(path.read_text("utf-8")):
            if not words[0].startswith(("<", "{")) and (why := docs.problem(words)):
                told[named(path)] = why
    assert told == {}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["streams", "mend"], "broker streams has no command 'mend'"),
        (["up", "--nothing"], "broker up has no option --nothing"),
        (["send", "--from", "+4915200000000", "--body=x"], None),
        (["test", "events", "--", "-k", "x"], None),
    ],
)
def test_what_does_not_exist_is_found(words: list[str], why: str | None) -> None:
    """The check itself sees wrong commands and options, and takes right ones."""
    assert docs.problem(words) == why


@pytest.mark.parametrize("page", docs.PAGES, ids=named)
def test_links_resolve(page: Path) -> None:
    """Every relative link leads to a file or directory of the checkout."""
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    local = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", docs.PAGES, ids=named)
def test_settings_of_the_pages_exist(page: Path) -> None:
    """Every BROKER_ variable is a setting's or one of the launcher's."""
    known = {variable(name) for name in NAMES | RESERVED}
    assert set(re.findall(r"\bBROKER_[A-Z_]*[A-Z]\b", page.read_text("utf-8"))) <= known


def test_settings_of_the_program_s_texts_exist() -> None:
    """No error names a variable that is not there."""
    known = {variable(name) for name in NAMES | RESERVED}
    for path in SOURCES:
        assert set(re.findall(r"\bBROKER_[A-Z_]*[A-Z]\b", path.read_text("utf-8"))) <= known, path


def test_the_page_of_settings_is_that_of_the_settings() -> None:
    """Otherwise: a meaning in settings_page.py, then python -m broker.cli.settings_page."""
    assert settings_page.undescribed() == set()
    assert settings_page.PAGE.read_text("utf-8") == settings_page.text()


def test_every_setting_is_heeded() -> None:
    """None is there for nothing."""
    code = "\n".join(path.read_text("utf-8") for path in SOURCES if path.name != "settings_page.py")
    unused = {name for name in NAMES if not re.search(rf"(settings|self)\.{name}\b", code)}
    assert unused == set()


def test_decisions_are_numbered() -> None:
    """From 1 without a gap, the number in the name and in the title."""
    pages = sorted((docs.ROOT / "docs" / "decisions").glob("*.md"))
    for number, page in enumerate(pages, 1):
        assert re.fullmatch(rf"{number:04}-[a-z0-9-]+\.md", page.name)
        assert page.read_text("utf-8").startswith(f"# {number}. "), page.name
