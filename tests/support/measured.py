"""What a suite ran on, kept for the readiness report when the suite is done: versions, addresses, users, clients."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from broker.cli.readiness import components, evidence
from support.system import System

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def noting(system: System, suite: str, root: Path = ROOT) -> Iterator[None]:
    """Ask the system at the end of the block, and write it to a file, unless the source has changed meanwhile.

    In a spread run each process has a system, and a file, of its own.
    """
    source = evidence.source_digest(root)
    yield
    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    found = asyncio.run(components.measured(system.settings, suite, source, time.time()))
    if evidence.source_digest(root) == source:
        evidence.write(components.directory(root) / f"{suite}-{worker}.json", found)
