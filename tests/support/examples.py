"""How many examples a property is tried with: fewer in an ordinary run, which everybody waits for."""

from __future__ import annotations

_full = False


def choose(*, full: bool) -> None:
    """What `--full` says; before the first module of tests is imported."""
    global _full
    _full = full


def examples(ordinary: int, full: int) -> int:
    """One of both."""
    return full if _full else ordinary
