"""How a run is spread over processes: what shares a running system stays together, what takes long comes first."""

from __future__ import annotations

from typing import Any

# Files of a directory that use its one running system: in different processes each would start another.
TOGETHER = {
    "cli": ("admin", "checks", "demo", "history", "keys", "projection", "send", "streams"),
    "ops": ("containers", "examples", "preflight", "prepare", "reference", "smoke"),
    "system": ("components", "first_run", "flow", "readme"),
    "load": ("queue", "throughput"),
}
# What takes minutes, by the beginnings of paths; the longest first.
LONG = (
    "ops/", "test_bench.py", "portal/", "cli/", "system/", "load/", "upgrade/", "repair/", "backup/", "archive/",
    "audit/", "projections/", "delivery/",
)  # fmt: skip


def rank(path: str) -> tuple[int, str]:
    """Where a file under tests/ stands in the order; those that go together stand together."""
    place = next((number for number, start in enumerate(LONG) if path.startswith(start)), len(LONG))
    return place, unit(path)


def unit(path: str) -> str:
    """What a file under tests/ is handed out with: its own path, or its directory's."""
    directory, _, file = path.partition("/")
    name = file.removeprefix("test_").removesuffix(".py")
    return directory if name in TOGETHER.get(directory, ()) else path


def scheduler(config: Any, log: Any) -> Any:
    """For pytest-xdist."""
    from xdist.scheduler import LoadScopeScheduling

    class ByUnit(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit(nodeid.partition("::")[0].removeprefix("tests/"))

    return ByUnit(config, log)
