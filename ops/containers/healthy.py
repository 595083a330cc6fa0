"""Whether the process of a role in this container is well: `python healthy.py gateway`. For health checks."""

# ruff: noqa: T201 - what it says shows in the container's health log
from __future__ import annotations

import asyncio
import sys

from broker.cli.services import targets
from broker.embedded.probe import health
from broker.settings import load


def main(role: str) -> int:
    """0 when the role's health page answers 200."""
    found = asyncio.run(health(targets(load())[role]))
    print("well" if found.ok else found.detail)
    return 0 if found.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
