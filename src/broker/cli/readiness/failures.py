"""What failed once, as the suites keep it in `var/results/defects.json`: also when it passes again."""

from __future__ import annotations

from pathlib import Path

import msgspec


class Failure(msgspec.Struct, frozen=True):
    """A test or linter that failed: when last and first, on which source; and since when it passes."""

    cases: list[str]
    said: str
    source: str
    at: float
    first: float
    passed_at: float | None = None
    passed_source: str = ""


def file(root: Path) -> Path:
    """Where they are kept."""
    return root / "var" / "results" / "defects.json"


def read(root: Path) -> dict[str, Failure]:
    """All of them, by test or linter."""
    path = file(root)
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Failure]) if path.exists() else {}
