"""One system for all load cases: two gateways, three workers; and how long each case takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from support import measured
from support import system as systems
from support.load import results
from support.spreading import beside_others
from support.system import System


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether the cases run their whole length (`--full`)."""
    return bool(request.config.getoption("--full"))


@pytest.fixture(scope="package")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A running system of several gateways and workers."""
    data = tmp_path_factory.mktemp("load")
    with (
        systems.running(data, "--gateways", "2", "--workers", "3", retry_interval="1") as running,
        measured.noting(running, "load"),
    ):
        yield running


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Callable[[int, int], None]:
    """Shows how far a case is, on the terminal, every twentieth of it."""
    plugins = request.config.pluginmanager
    terminal, capture = plugins.get_plugin("terminalreporter"), plugins.get_plugin("capturemanager")
    name = request.node.name

    def tell(done: int, total: int) -> None:
        if terminal is None or not terminal.isatty or done % max(1, total // 20):
            return
        with capture.global_and_fixture_disabled():
            terminal.write(f"\r{name}: {done} of {total} requests", flush=True)
            terminal.write("\n" if done == total else "")

    return tell


@pytest.fixture
def record(full: bool) -> Callable[..., None]:
    """Keeps a case's figures for the report."""

    def keep(case: str, form: str, **figures: object) -> None:
        # Where others share out the tests, some may still run beside any of these.
        shared = ", in a run shared with other tests" if beside_others() else ""
        results.record(case, full=full, form=form + shared, figures=figures)

    return keep
