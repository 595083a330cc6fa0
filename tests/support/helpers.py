"""Programs that a few tests need and that not every system has: what is not shown without them is said."""

from __future__ import annotations

import pytest

from broker.embedded import install

SHOWN_WITH = {
    "systemd-analyze": "systemd's own parser and its programs at the units and lists of ops/linux",
    "node": "the client examples/producer.mjs",
}


def not_shown() -> list[str]:
    """A line for each program that is missing."""
    return [f"not shown: {SHOWN_WITH[name]}. {advice}" for name, advice in install.missing_helpers().items()]


def told(terminalreporter: pytest.TerminalReporter) -> list[str]:
    """A line for each thing that a test said it could not show, as a user property of this name."""
    properties = [
        each for report in terminalreporter.stats.get("passed", []) for each in report.user_properties
    ]
    return [
        f"not shown: {text}"
        for text in dict.fromkeys(text for name, text in properties if name == "not shown")
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """With the warnings, at the end of every run."""
    for line in [*not_shown(), *told(terminalreporter)]:
        terminalreporter.write_line(line, yellow=True)
