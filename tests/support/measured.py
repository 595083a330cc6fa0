"""What a suite ran on, kept for the readiness report when the suite is done: versions, addresses, users, clients."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from broker.cli.readiness import components, evidence
from support.system import System

ROOT = Path(__file__).resolve().parents[2]


def note(system: System, suite: str, root: Path = ROOT) -> Path:
    """Ask the system, and write it to a file; in a spread run each process has a system, and a file, of its own."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    source = evidence.source_digest(root)
    found = asyncio.run(components.measured(system.settings, suite, source, time.time()))
    path = components.directory(root) / f"{suite}-{worker}.json"
    evidence.write(path, found)
    return path
