"""How a run is spread over processes: what shares a running system stays together, what takes long comes first."""

from __future__ import annotations

import os
from typing import Any

# Files of a directory that use its one running system: in different processes each would start another.
TOGETHER = {
    "cli": ("admin", "checks", "demo", "history", "keys", "projection", "send", "streams"),
    "ops": ("containers", "examples", "preflight", "prepare", "reference", "smoke"),
    "system": ("components", "first_run", "flow", "readme"),
    "load": ("throughput", "queue", "portal"),
}
# What takes minutes, by the beginnings of paths; the longest first.
LONG = (
    "ops/", "test_bench.py", "portal/", "cli/", "system/", "load/", "upgrade/", "repair/", "backup/", "archive/",
    "audit/", "projections/", "delivery/",
)  # fmt: skip


def rank(path: str, *, full: bool = False) -> tuple[int, str, int]:
    """Where a file under tests/ stands in the order; those that go together stand together.

    In a full run the load comes first of all, with the hour at one message a second: the other processes do
    everything else in that hour, so that the loads after it have the machine to themselves.
    """
    if full and path.startswith("load/"):
        place = -1
    else:
        place = next((number for number, start in enumerate(LONG) if path.startswith(start)), len(LONG))
    directory, name = _split(path)
    together = TOGETHER.get(directory, ())
    return place, unit(path), together.index(name) if name in together else 0


def unit(path: str) -> str:
    """What a file under tests/ is handed out with: its own path, or its directory's."""
    directory, name = _split(path)
    return directory if name in TOGETHER.get(directory, ()) else path


def _split(path: str) -> tuple[str, str]:
    directory, _, file = path.partition("/")
    return directory, file.removeprefix("test_").removesuffix(".py")


def beside_others() -> bool:
    """Whether this process is one of several that share out the tests."""
    return "PYTEST_XDIST_WORKER" in os.environ


def scheduler(config: Any, log: Any) -> Any:
    """For pytest-xdist."""
    from xdist.scheduler import LoadScopeScheduling

    class ByUnit(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit(nodeid.partition("::")[0].removeprefix("tests/"))

    return ByUnit(config, log)
